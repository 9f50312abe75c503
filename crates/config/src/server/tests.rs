//! The server's layers, addresses and start-up models.

use std::fs;
use std::path::Path;

use super::*;
use crate::keys::{self, Scope};
use crate::source::Source;

/// A command line on a machine without SageMaker's directories.
fn cli() -> ServerOverrides {
    ServerOverrides { sagemaker_root: "/nonexistent".into(), ..ServerOverrides::default() }
}

fn resolve(cli: &ServerOverrides, env: &[(&str, &str)]) -> (ServerConfig, Vec<String>) {
    let env: Environment = env.iter().copied().collect();
    let (config, warnings) = ServerConfig::resolve(cli, &env).expect("resolves");
    (config, warnings.iter().map(ToString::to_string).collect())
}

fn refused(cli: &ServerOverrides, env: &[(&str, &str)]) -> String {
    let env: Environment = env.iter().copied().collect();
    ServerConfig::resolve(cli, &env).expect_err("refused").to_string()
}

fn file(dir: &Path, text: &str) -> ServerOverrides {
    let path = dir.join("config.properties");
    fs::write(&path, text).expect("written");
    ServerOverrides { config_file: Some(path), ..cli() }
}

#[test]
fn defaults_are_the_contracts() {
    let (config, warnings) = resolve(&cli(), &[]);
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(config.inference_address.value.to_string(), "http://127.0.0.1:8080");
    assert!(config.shares_listener());
    assert_eq!(config.job_queue_size.value.get(), 1000);
    assert_eq!(config.batch_size.value.get(), 1);
    assert_eq!(config.max_batch_delay.value, Duration::from_millis(100));
    assert_eq!(config.max_idle_time.value, Duration::from_secs(60));
    assert_eq!(config.reserved_memory_bytes.value, 500 << 20);
    assert_eq!(config.max_request_size.value, 67_108_864);
    assert_eq!(config.chunked_read_timeout.value, Duration::from_secs(120));
    assert_eq!(config.request_id_header_key.value, "x-request-id");
    assert!(config.wait_model_loading.value && !config.allow_multi_status.value);
    assert_eq!(config.load_models, Sourced::built_in(LoadModels::All));
    assert!(config.models.is_empty() && config.model_store.is_none());
}

#[test]
fn layers_win_in_the_contracts_order() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut cli = file(dir.path(), "job_queue_size=7\nbatch_size=3\nmodel_store=/nowhere/a\n");
    let (config, _) = resolve(&cli, &[]);
    assert_eq!(config.job_queue_size.value.get(), 7);
    let at = config.job_queue_size.source.to_string();
    assert!(at.ends_with("config.properties:1"), "{at}");
    cli.model_store = Some("/nowhere/b".into());
    let env = [
        ("SERVING_JOB_QUEUE_SIZE", "9"),
        ("MAX_CONCURRENT_REQUESTS", "11"),
        ("SERVING_MAX_REQUEST_SIZE", "5"),
        ("SAGEMAKER_MAX_PAYLOAD_IN_MB", "6"),
        ("SERVING_BATCH_SIZE", ""),
    ];
    let (config, _) = resolve(&cli, &env);
    assert_eq!(config.job_queue_size.value.get(), 9);
    assert_eq!(config.job_queue_size.source.to_string(), "environment SERVING_JOB_QUEUE_SIZE");
    assert_eq!(config.batch_size.value.get(), 3);
    assert_eq!(config.max_request_size.value, 6 << 20);
    let store = config.model_store.expect("set");
    assert_eq!(store.value, Path::new("/nowhere/b"));
    let env = [("SERVING_MODEL_STORE", "/nowhere/c"), ("MAX_CONCURRENT_REQUESTS", "11")];
    let (config, _) = resolve(&cli, &env);
    assert_eq!(config.model_store.expect("set").value, Path::new("/nowhere/c"));
    assert_eq!(config.job_queue_size.value.get(), 11);
}

#[test]
fn the_file_is_found_under_the_servers_home() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let at = home.path().to_str().expect("UTF-8");
    fs::write(home.path().join("config.properties"), "batch_size=2").expect("written");
    assert_eq!(resolve(&cli(), &[("MODEL_SERVER_HOME", at)]).0.batch_size.value.get(), 2);
    fs::create_dir(home.path().join("conf")).expect("created");
    fs::write(home.path().join("conf/config.properties"), "batch_size=3").expect("written");
    assert_eq!(resolve(&cli(), &[("MODEL_SERVER_HOME", at)]).0.batch_size.value.get(), 3);
    let absent = ServerOverrides { config_file: Some("/nowhere.properties".into()), ..cli() };
    let (_, warnings) = resolve(&absent, &[]);
    assert_eq!(warnings, ["/nowhere.properties: no such file: the defaults apply"]);
}

#[test]
fn errors_name_place_key_value_and_what_is_allowed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let text = refused(&file(dir.path(), "# x\nmax_batch_delay=1OO\n"), &[]);
    assert!(
        text.ends_with(
            "config.properties:2: max_batch_delay=1OO: expected whole milliseconds, 0 or more"
        ),
        "{text}"
    );
    for (variable, value, message) in [
        ("SERVING_BATCH_SIZE", "0", "batch_size=0: expected a whole number from 1 to 4294967295"),
        ("SERVING_BATCH_SIZE", "-1", "batch_size=-1: expected a whole number from 1 to 4294967295"),
        ("SERVING_WAIT_MODEL_LOADING", "yes", "wait_model_loading=yes: expected true or false"),
        (
            "SERVING_THROTTLE_ERROR_HTTP_CODE",
            "200",
            "throttle_error_http_code=200: expected an HTTP status from 400 to 599",
        ),
        (
            "SERVING_MAX_REQUEST_SIZE",
            "64MB",
            "max_request_size=64MB: expected whole bytes, 1 or more",
        ),
        (
            "SERVING_REQUEST_ID_HEADER_KEY",
            "x id",
            "request_id_header_key=x id: expected the name of an HTTP header",
        ),
        (
            "SAGEMAKER_SAFE_PORT_RANGE",
            "9-1",
            "SAGEMAKER_SAFE_PORT_RANGE=9-1: expected two ports such as 8000-8999, the lower one \
             first",
        ),
        (
            "SAGEMAKER_BIND_TO_PORT",
            "http",
            "SAGEMAKER_BIND_TO_PORT=http: expected a port from 1 to 65534",
        ),
    ] {
        let wanted = format!("environment {variable}: {message}");
        assert_eq!(refused(&cli(), &[(variable, value)]), wanted);
    }
    let text = refused(&cli(), &[("SERVING_INFERENCE_ADDRESS", "0.0.0.0:8080")]);
    assert!(text.contains("inference_address=0.0.0.0:8080: expected http://host[:port]"), "{text}");
}

#[test]
fn unknown_keys_are_warned_about_with_the_nearest_name() {
    let (_, warnings) = resolve(&cli(), &[("SERVING_JOB_QUE_SIZE", "5"), ("SERVING_OPTS", "-Xmx")]);
    assert_eq!(
        warnings,
        [
            "environment SERVING_JOB_QUE_SIZE: unknown key job_que_size is ignored; the nearest known \
          one is job_queue_size"
        ]
    );
    let (_, warnings) = resolve(&cli(), &[("SERVING_IO_RATIO", "50")]);
    assert_eq!(
        warnings,
        ["environment SERVING_IO_RATIO: io_ratio has no effect here (transport tuning of another \
          server)"]
    );
}

#[test]
fn sagemaker_and_the_command_line_move_the_port() {
    let address = |cli: &ServerOverrides, env: &[(&str, &str)]| {
        let (config, _) = resolve(cli, env);
        (config.inference_address.value.to_string(), config.management_address.value.to_string())
    };
    let both = |text: &str| (text.to_owned(), text.to_owned());
    let bind = ("SAGEMAKER_BIND_TO_PORT", "9000");
    assert_eq!(address(&cli(), &[bind]), both("http://0.0.0.0:9000"));
    let port = ServerOverrides { port: Some(0), ..cli() };
    assert_eq!(address(&port, &[]), both("http://127.0.0.1:0"));
    assert_eq!(address(&port, &[bind]), both("http://0.0.0.0:0"));
    let host = ServerOverrides { host: Some("::1".into()), ..cli() };
    assert_eq!(address(&host, &[]), both("http://[::1]:8080"));
    let bad = ServerOverrides { host: Some("a b".into()), ..cli() };
    assert_eq!(
        refused(&bad, &[]),
        "command line --host: host=a b: expected a host name or an IP address"
    );
    let split = [
        ("SERVING_INFERENCE_ADDRESS", "http://0.0.0.0:8080"),
        ("SERVING_MANAGEMENT_ADDRESS", "http://127.0.0.1:8081"),
    ];
    let found = address(&cli(), &split);
    assert_eq!(found, ("http://0.0.0.0:8080".into(), "http://127.0.0.1:8081".into()));
    let range = [split[0], split[1], bind, ("SAGEMAKER_SAFE_PORT_RANGE", "9000-9100")];
    assert_eq!(address(&cli(), &range), both("http://0.0.0.0:9000"));
    assert_eq!(resolve(&cli(), &range).1.len(), 1);
}

#[test]
fn a_sagemaker_container_has_its_own_defaults() {
    let root = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir_all(root.path().join("model")).expect("created");
    fs::create_dir_all(root.path().join(".sagemaker_infra")).expect("created");
    fs::write(root.path().join(".sagemaker_infra/endpoint-metadata.json"), "{}").expect("written");
    let default_model = Some("/shipped/model".into());
    let cli = ServerOverrides { sagemaker_root: root.path().to_owned(), default_model, ..cli() };
    let (config, _) = resolve(&cli, &[]);
    assert_eq!(config.inference_address.value.to_string(), "http://0.0.0.0:8080");
    assert!(config.shares_listener() && config.on_sagemaker);
    assert_eq!(config.request_id_header_key.value, "X-Amzn-SageMaker-Inference-Id");
    assert_eq!(config.models, [], "an empty model directory is no model, nor is the shipped one");
    fs::write(root.path().join("model/serving.properties"), "").expect("written");
    let (config, _) = resolve(&cli, &[]);
    let names: Vec<String> = config.models.iter().map(ModelSpec::name_or_default).collect();
    assert_eq!(names, ["model"]);
    let (config, _) = resolve(&cli, &[("SERVING_LOAD_MODELS", "test::Python=/opt/ml/model")]);
    let [spec] = config.models.as_slice() else { panic!("{:?}", config.models) };
    assert_eq!(spec.source, Source::Env { variable: "SERVING_LOAD_MODELS".into() });
    assert_eq!((spec.name_or_default().as_str(), spec.engine.as_deref()), ("test", Some("Python")));
}

#[test]
fn a_store_of_models_is_told_from_a_model() {
    let urls = |root: &Path| -> Vec<String> {
        let cli = ServerOverrides { model_store: Some(root.to_owned()), ..cli() };
        let short = |spec: &ModelSpec| spec.name_or_default();
        resolve(&cli, &[]).0.models.iter().map(short).collect()
    };
    let root = tempfile::tempdir().expect("a temporary directory");
    let store = root.path().join("store");
    fs::create_dir_all(store.join("b")).expect("created");
    fs::create_dir_all(store.join(".hidden")).expect("created");
    fs::write(store.join("a.tar.gz"), "").expect("written");
    assert_eq!(urls(&store), ["a", "b"]);
    fs::write(store.join(".hidden-file"), "").expect("written");
    assert_eq!(urls(&store), ["a", "b"]);
    fs::write(store.join("config.json"), "{}").expect("written");
    assert_eq!(urls(&store), ["store"]);
    let gone = ServerOverrides { model_store: Some(root.path().join("gone")), ..cli() };
    let (config, warnings) = resolve(&gone, &[]);
    assert!(config.models.is_empty() && warnings.len() == 1, "{warnings:?}");
}

#[test]
fn models_come_from_the_command_line_the_environment_or_the_binary() {
    let default_model = Some("/shipped/bart-g2p".into());
    let cli = ServerOverrides { default_model, ..cli() };
    let names = |models: &[&str], env: &[(&str, &str)]| -> Vec<String> {
        let models = models.iter().map(|&text| text.to_owned()).collect();
        let (config, _) = resolve(&ServerOverrides { models, ..cli.clone() }, env);
        config.models.iter().map(ModelSpec::name_or_default).collect()
    };
    assert_eq!(names(&[], &[]), ["bart_g2p"]);
    assert_eq!(names(&["x=/a", "/b"], &[]), ["x", "b"]);
    assert_eq!(names(&["x=/a,y=/b"], &[]), ["x", "y"]);
    assert_eq!(names(&["NONE"], &[]), Vec::<String>::new());
    assert_eq!(names(&["/a"], &[("SERVING_LOAD_MODELS", "z=/c")]), ["z"]);
    assert_eq!(names(&[], &[("HF_MODEL_ID", "facebook/bart-large")]), ["facebook_bart_large"]);
    assert_eq!(names(&["/a"], &[("HF_MODEL_ID", "gpt2")]), ["a", "gpt2"]);
    assert_eq!(names(&["NONE"], &[("HF_MODEL_ID", "gpt2")]), ["gpt2"]);
    assert_eq!(names(&[], &[("SAGEMAKER_MULTI_MODEL", "true")]), Vec::<String>::new());
    let odd = tempfile::Builder::new().prefix("a, b=c ").tempdir().expect("a directory");
    let odd = odd.path().to_str().expect("UTF-8");
    assert_eq!(names(&[&format!("odd={odd}")], &[]), ["odd"]);
    let (config, _) = resolve(&ServerOverrides { models: vec![odd.into()], ..cli.clone() }, &[]);
    assert_eq!(config.models[0].url, odd);
    let (config, _) = resolve(
        &ServerOverrides { models: vec![odd.into()], ..cli.clone() },
        &[("HF_MODEL_ID", odd)],
    );
    assert_eq!(config.models.len(), 1, "the same directory is loaded once");
}

#[test]
fn secrets_are_masked() {
    let env: Environment = [
        ("HF_TOKEN", "hf_verysecret"),
        ("AWS_SECRET_ACCESS_KEY", "verysecret"),
        ("SAGEMAKER_SERVE_SECRET_KEY", "verysecret"),
        ("SERVING_KEYSTORE_PASS", "verysecret"),
        ("HOME", "/root"),
    ]
    .into();
    let (config, _) = ServerConfig::resolve(&cli(), &env).expect("resolves");
    assert_eq!(config.hub.token.as_ref().map(|t| t.value.expose()), Some("hf_verysecret"));
    assert_eq!(config.tls.keystore_pass.value.expose(), "verysecret");
    let printed = format!("{config:?} {env:?} {}", config.tls.keystore_pass.value);
    assert!(!printed.contains("verysecret") && printed.contains("/root"), "{printed}");
}

#[test]
fn the_hubs_places_are_those_of_its_python_client() {
    let check = |env: &[(&str, &str)], cache: &str, token_file: &str| {
        let (config, _) = resolve(&cli(), env);
        assert_eq!(config.hub.cache.value, Path::new(cache), "{env:?}");
        assert_eq!(config.hub.token_file, Path::new(token_file), "{env:?}");
    };
    let home = ("HOME", "/h");
    check(&[home], "/h/.cache/huggingface/hub", "/h/.cache/huggingface/token");
    check(&[home, ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub", "/x/huggingface/token");
    check(&[home, ("HF_HOME", "~/hf")], "/h/hf/hub", "/h/hf/token");
    check(&[home, ("HF_HOME", "/a"), ("HUGGINGFACE_HUB_CACHE", "/b")], "/b", "/a/token");
    check(
        &[("HF_HUB_CACHE", "/c"), ("HUGGINGFACE_HUB_CACHE", "/b"), ("HF_TOKEN_PATH", "/t")],
        "/c",
        "/t",
    );
    let tmp = std::env::temp_dir();
    let (config, _) = resolve(&cli(), &[home, ("SAGEMAKER_BIND_TO_PORT", "8080")]);
    assert_eq!(config.hub.cache.value, tmp.join(".cache/huggingface/hub"));
    for (name, value, offline) in [
        ("HF_HUB_OFFLINE", "1", true),
        ("HF_HUB_OFFLINE", "yes", true),
        ("HF_HUB_OFFLINE", "0", false),
        ("TRANSFORMERS_OFFLINE", "ON", true),
        ("SERVING_OFFLINE", "true", true),
        ("HF_HUB_ENABLE_HF_TRANSFER", "1", false),
    ] {
        let (config, _) = resolve(&cli(), &[(name, value)]);
        assert_eq!(config.hub.offline.value, offline, "{name}={value}");
    }
    let (config, _) = resolve(&cli(), &[("HUGGING_FACE_HUB_TOKEN", "old"), ("HF_TOKEN", "new")]);
    assert_eq!(config.hub.token.expect("set").value.expose(), "new");
    assert_eq!(config.hub.endpoint.value, "https://huggingface.co");
}

#[test]
fn plugin_directories_are_the_flags_then_the_variables() {
    let cli = ServerOverrides { plugins: vec!["/a".into()], ..cli() };
    let (config, _) = resolve(&cli, &[("DRIVETRAIN_PLUGINS", "/b::/c")]);
    assert_eq!(config.plugins, [Path::new("/a"), Path::new("/b"), Path::new("/c")]);
}

#[test]
fn any_value_of_any_key_resolves_or_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for key in keys::all(Scope::Server) {
        for value in ["", "x", "0", "-1", "1.5", "99999999999999999999999", "*", "é\u{7}", "/", "="]
        {
            let cli = file(dir.path(), &format!("{}={value}\n", key.name));
            if let Err(e) = ServerConfig::resolve(&cli, &Environment::default()) {
                let text = e.to_string();
                let wanted = format!("config.properties:1: {}=", key.name);
                assert!(text.contains(&wanted) && text.contains(": expected "), "{text}");
            }
        }
    }
}
