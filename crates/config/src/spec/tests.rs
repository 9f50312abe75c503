//! Entries of `load_models` and default names.

use super::*;

type Parts<'a> = (Option<&'a str>, Option<&'a str>, Option<&'a str>, Option<&'a str>, &'a str);

#[test]
fn entries_read() {
    let check = |entry: &str, wanted: Parts<'_>| {
        let spec = ModelSpec::parse(entry, &Source::Default).expect(entry);
        let ModelSpec { name, version, engine, devices, url, .. } = &spec;
        let found: Parts<'_> =
            (name.as_deref(), version.as_deref(), engine.as_deref(), devices.as_deref(), url);
        assert_eq!(found, wanted, "{entry}");
    };
    check("/opt/ml/model", (None, None, None, None, "/opt/ml/model"));
    check("bart=/m", (Some("bart"), None, None, None, "/m"));
    check(
        "test::Python=/opt/ml/model",
        (Some("test"), None, Some("Python"), None, "/opt/ml/model"),
    );
    check("[test::Python]=/m", (Some("test"), None, Some("Python"), None, "/m"));
    check(
        "[a:v1:Python:*]=s3://b/m",
        (Some("a"), Some("v1"), Some("Python"), Some("*"), "s3://b/m"),
    );
    check("a:::0;1=/m", (Some("a"), None, None, Some("0;1"), "/m"));
    check("::Python=/m", (None, None, Some("Python"), None, "/m"));
    check("=/m", (None, None, None, None, "/m"));
    check("file:///m?topK=1", (None, None, None, None, "file:///m?topK=1"));
    check("a=file:///m?topK=1", (Some("a"), None, None, None, "file:///m?topK=1"));
    check("/data/run=7/m", (None, None, None, None, "/data/run=7/m"));
    check("s3://b/run=7", (None, None, None, None, "s3://b/run=7"));
    check("https://h:8080/m.zip", (None, None, None, None, "https://h:8080/m.zip"));
}

#[test]
fn other_entries_are_refused() {
    for entry in ["", "a=", "[a=/m", "a]=/m", "a:1:e:0:x=/m", "a\u{7}=/m"] {
        let refused = ModelSpec::parse(entry, &Source::CommandLine { flag: "--models" });
        let text = refused.expect_err(entry).to_string();
        assert!(text.starts_with("command line --models: load_models="), "{text}");
        assert!(text.contains(": expected "), "{text}");
    }
}

#[test]
fn lists_split_at_commas_and_blanks() {
    let specs = ModelSpec::parse_list(" a=/a, b=/b\t/c,,", &Source::Default).expect("a list");
    let names: Vec<String> = specs.iter().map(ModelSpec::name_or_default).collect();
    assert_eq!(names, ["a", "b", "c"]);
}

#[test]
fn default_names_come_from_the_last_segment() {
    for (url, name) in [
        ("/opt/ml/model", "model"),
        ("/opt/ml/model/", "model"),
        ("/models/bart-large.tar.gz", "bart_large"),
        ("/models/SmolLM2.Q4_1.gguf", "SmolLM2_Q4_1"),
        ("file:///models/My.Model.TGZ", "My_Model"),
        ("https://host/a/b.zip?topK=1", "b"),
        ("s3://bucket/prefix/model-v2/", "model_v2"),
        ("gpt2", "gpt2"),
        ("modèle", "mod_le"),
        ("v1.5/", "v1_5"),
        (".zip", "_zip"),
        ("/", "model"),
    ] {
        assert_eq!(default_name(url), name, "{url}");
    }
}

#[test]
fn a_model_id_names_a_model_as_a_whole() {
    let id =
        |url: &str| ModelSpec { origin: Origin::ModelId, ..ModelSpec::at(url) }.name_or_default();
    assert_eq!(id("microsoft/Phi-3"), "microsoft_Phi_3");
    assert_eq!(id("s3://bucket/some/model/"), "model");
}

#[test]
fn hub_ids_are_told_from_paths() {
    let check = |entry: &str, origin: Origin, name: &str| {
        let spec = ModelSpec::parse(entry, &Source::Default).expect(entry);
        assert_eq!((spec.origin, spec.name_or_default().as_str()), (origin, name), "{entry}");
    };
    check("facebook/bart-large", Origin::ModelId, "facebook_bart_large");
    check("bart=facebook/bart-large", Origin::ModelId, "bart");
    check("hf://gpt2", Origin::ModelId, "gpt2");
    check("hf://org/name@v1", Origin::ModelId, "org_name_v1");
    check("s3://bucket/m", Origin::Artifact, "m");
    check("gpt2", Origin::Artifact, "gpt2");
    // Directories of this crate: what is under them is meant as a path.
    check("src/none", Origin::Artifact, "none");
    for path in ["/a/b", "./a/b", "../a", "~/a", "a/b/c", "a/b.tar.gz", "a/", "a b/c"] {
        assert_eq!(ModelSpec::at(path).origin, Origin::Artifact, "{path}");
    }
}

#[test]
fn arguments_are_no_part_of_the_place() {
    for (url, place) in [
        ("s3://b/m?topK=1", "s3://b/m"),
        ("file:///m?x=1", "file:///m"),
        ("/m?x", "/m?x"),
        ("https://h/m.zip?sig=1", "https://h/m.zip?sig=1"),
    ] {
        assert_eq!(ModelSpec::at(url).place(), place);
    }
}

#[test]
fn an_entry_goes_before_the_file_as_a_registration() {
    let spec = ModelSpec::parse("a::DeepSpeed:0=/m", &Source::Default).expect("an entry");
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(spec.registration(), [pair("engine", "DeepSpeed"), pair("device", "0")]);
    assert_eq!(spec.engine_choice(), Some(EngineChoice::Named("deepspeed".to_owned())));
}

#[test]
fn a_url_has_a_path_and_arguments() {
    let path = |url: &str| ModelSpec::at(url).local_path().map(|path| path.display().to_string());
    assert_eq!(path("/m/a?b").as_deref(), Some("/m/a?b"));
    assert_eq!(path("file:///m/a?topK=1").as_deref(), Some("/m/a"));
    assert_eq!(path("file:/m/a").as_deref(), Some("/m/a"));
    assert_eq!(path("s3://b/m"), None);
    let id = ModelSpec { origin: Origin::ModelId, ..ModelSpec::at("gpt2") };
    assert_eq!(id.local_path(), None);
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(id.registration(), [pair("model_id", "gpt2")]);
    let spec = ModelSpec::at("file:///m?topK=1&application=nlp%2Ftext");
    assert_eq!(spec.registration(), [pair("topK", "1"), pair("application", "nlp/text")]);
}
