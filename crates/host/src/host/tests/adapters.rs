//! Adapters: names, slots, leases, and who goes through which.

use super::*;
use crate::fake::context;
use crate::{AdapterChange, AdapterChoice, AdapterInfo};

/// A directory with an adapter that does `number`.
fn adapter(root: &Path, name: &str, number: u32) -> String {
    let dir = root.join(name);
    fs::create_dir_all(&dir).unwrap();
    write(&dir, "number", &number.to_string());
    dir.to_str().unwrap().to_owned()
}

fn info_of(name: &str, src: String) -> AdapterInfo {
    AdapterInfo { name: name.to_owned(), alias: None, src, preload: true, pin: false }
}

fn with_adapters(kind: ModelKind, properties: &str) -> Served {
    let info = TokenModelInfo { has_adapters: true, ..info(kind) };
    serve_with(info, &format!("option.enable_lora=true\n{properties}"))
}

fn one(name: &str) -> AdapterChoice {
    AdapterChoice::One(name.to_owned())
}

/// What the model says to `t3 t5` through `choice`.
async fn said(model: &ModelHandle, choice: AdapterChoice) -> Result<String, HostError> {
    let parameters = json!({"max_new_tokens": 6, "return_full_text": false});
    let reply = model.through(choice).submit(request(&["t3 t5"], parameters)).await?;
    Ok(generated(reply).remove(0).text)
}

fn expect(number: u32) -> String {
    words(&continuation(&context(&[], number), &[3, 5], 6))
}

#[tokio::test]
async fn requests_go_through_the_adapter_they_name() {
    let served = with_adapters(ModelKind::Decoder, "");
    let root = tempfile::tempdir().unwrap();
    for (name, number) in [("a", 1), ("b", 2)] {
        let info = info_of(name, adapter(root.path(), name, number));
        served.model.register_adapter(info).await.unwrap();
    }
    assert_ne!(expect(1), expect(2));
    // Twice, so that the second finds the first's kept prefixes, and may not take another's.
    for _ in 0..2 {
        assert_eq!(said(&served.model, one("a")).await.unwrap(), expect(1));
        assert_eq!(said(&served.model, one("b")).await.unwrap(), expect(2));
        assert_eq!(said(&served.model, one("")).await.unwrap(), expect(0));
        assert_eq!(said(&served.model, AdapterChoice::None).await.unwrap(), expect(0));
    }
    let error = said(&served.model, one("c")).await.unwrap_err();
    assert_eq!(error.to_string(), "Adapter c is not registered");
    let each = AdapterChoice::Each(["b", "", "a"].map(str::to_owned).to_vec());
    let parameters = json!({"max_new_tokens": 6, "return_full_text": false});
    let inputs = request(&["t3 t5"; 3], parameters.clone());
    let reply = served.model.through(each.clone()).submit(inputs).await.unwrap();
    let texts: Vec<String> = generated(reply).into_iter().map(|g| g.text).collect();
    assert_eq!(texts, [expect(2), expect(0), expect(1)]);
    let error = served.model.through(each).submit(request(&["t3"], parameters)).await.unwrap_err();
    assert!(error.to_string().contains("3 names for 1 inputs"), "{error}");
    assert_eq!(served.engine.book.lock().unwrap().sins, Vec::<String>::new());
}

#[tokio::test]
async fn the_least_recently_used_makes_room_and_pinned_ones_stay() {
    let served = with_adapters(ModelKind::Decoder, "option.max_loras=2");
    let root = tempfile::tempdir().unwrap();
    let register = async |name: &str, number, pin| {
        let info = info_of(name, adapter(root.path(), name, number));
        served.model.register_adapter(AdapterInfo { pin, ..info }).await
    };
    for (name, number) in [("a", 1), ("b", 2), ("c", 3)] {
        register(name, number, false).await.unwrap();
    }
    for (name, number) in [("a", 1), ("b", 2), ("c", 3), ("a", 1)] {
        assert_eq!(said(&served.model, one(name)).await.unwrap(), expect(number));
    }
    let book = || served.engine.book.lock().unwrap();
    assert_eq!(book().most_adapters, 2);
    assert!(book().n_unloaded >= 3);
    for name in ["a", "b"] {
        let pinned = AdapterChange { pin: Some(true), preload: Some(true), ..Default::default() };
        served.model.update_adapter(name, pinned).await.unwrap();
    }
    let error = register("d", 4, false).await.unwrap_err();
    assert!(matches!(&error, HostError::OutOfMemory { .. }), "{error}");
    assert!(error.to_string().contains("No free lora slots"), "{error}");
    assert!(served.model.find_adapter("d").is_err());
    assert_eq!(said(&served.model, one("a")).await.unwrap(), expect(1));
    let waits = tokio::time::timeout(Duration::from_millis(100), said(&served.model, one("c")));
    assert!(waits.await.is_err());
    served.model.unregister_adapter("b").unwrap();
    assert_eq!(said(&served.model, one("c")).await.unwrap(), expect(3));
    assert_eq!(book().sins, Vec::<String>::new());
}

#[tokio::test]
async fn a_slot_is_free_as_soon_as_the_answer_is_there() {
    let served = with_adapters(ModelKind::Decoder, "option.max_loras=1");
    let root = tempfile::tempdir().unwrap();
    let sources = [("a", 1), ("b", 2)].map(|(name, n)| (name, n, adapter(root.path(), name, n)));
    for (name, number, src) in std::iter::repeat_n(sources, 100).flatten() {
        // Does not wait for one.
        served.model.register_adapter(info_of(name, src)).await.unwrap();
        assert_eq!(said(&served.model, one(name)).await.unwrap(), expect(number));
        if name == "b" {
            served.model.unregister_adapter("a").unwrap();
            served.model.unregister_adapter("b").unwrap();
        }
    }
}

#[tokio::test]
async fn names_sources_and_files_are_checked() {
    let served = with_adapters(ModelKind::Decoder, "");
    let root = tempfile::tempdir().unwrap();
    let src = adapter(root.path(), "a", 1);
    let info = AdapterInfo { alias: Some("nice".to_owned()), ..info_of("a", src.clone()) };
    served.model.register_adapter(info.clone()).await.unwrap();
    assert_eq!(served.model.list_adapters().unwrap(), [info]);
    assert_eq!(said(&served.model, one("nice")).await.unwrap(), expect(1));
    let refused = async |info: AdapterInfo| {
        served.model.register_adapter(info).await.unwrap_err().to_string()
    };
    assert!(refused(info_of("a", src.clone())).await.contains("registered already"));
    assert!(refused(info_of("nice", src.clone())).await.contains("registered already"));
    assert!(refused(info_of("", src.clone())).await.contains("name is empty"));
    for bad in ["", "s3://bucket/a", "/nonexistent/a", "https://host/a"] {
        assert!(refused(info_of("x", bad.to_owned())).await.contains("local path"), "{bad}");
    }
    fs::remove_file(root.path().join("a/number")).unwrap();
    let broken = info_of("x", src.clone());
    assert_eq!(refused(broken).await, "adapter x: number: no such file");
    assert!(served.model.find_adapter("x").is_err());
    // What is loaded does not need its files.
    assert_eq!(said(&served.model, one("a")).await.unwrap(), expect(1));
    write(&root.path().join("a"), "number", "5");
    served.model.update_adapter("a", AdapterChange::default()).await.unwrap();
    assert_eq!(said(&served.model, one("a")).await.unwrap(), expect(5));
    served.model.unregister_adapter("nice").unwrap();
    assert!(said(&served.model, one("a")).await.is_err());
}

#[tokio::test]
async fn adapters_in_the_models_directory_are_there_at_once() {
    let info = TokenModelInfo { has_adapters: true, ..info(ModelKind::EncoderDecoder) };
    let dir = dir_of(info.kind, "option.enable_lora=true\noption.max_loras=1");
    for (name, number) in [("a", 1), ("b", 2)] {
        adapter(&dir.path().join("adapters"), name, number);
    }
    let host = host_of(Arc::new(FakeEngine::new("fake", info)));
    let model = host.load(&ModelSpec::at(dir.path().to_str().unwrap())).unwrap();
    model.wait_ready_blocking().unwrap();
    let names: Vec<String> = model.list_adapters().unwrap().into_iter().map(|a| a.name).collect();
    assert_eq!(names, ["a", "b"]);
    for number in [1, 2, 1] {
        let name = ["", "a", "b"][number as usize];
        let reply = model.through(one(name)).submit(request(&["t3 t5"], json!({}))).await.unwrap();
        let text = generated(reply).remove(0).text;
        let ids = continuation(&context(&[3, 5], number), &[2], 20);
        assert_eq!(text, words(&ids), "{name}");
    }
    fs::write(dir.path().join("adapters/a/number"), "x").unwrap();
    let reason = load_failure(FakeEngine::new("fake", info), &dir);
    assert!(reason.contains("adapters/a: number: no such file"), "{reason}");
}

#[tokio::test]
async fn without_the_option_or_the_power_there_are_none() {
    let served = serve(ModelKind::Decoder, "");
    assert!(!served.model.has_adapters());
    assert_eq!(served.model.list_adapters().unwrap_err().to_string(), "LoRA is not enabled.");
    let dir = dir_of(ModelKind::Decoder, "option.enable_lora=true");
    let reason = load_failure(FakeEngine::new("fake", info(ModelKind::Decoder)), &dir);
    assert!(reason.contains("computes no adapters beside the weights"), "{reason}");
    let dir = dir_of(ModelKind::Decoder, "option.enable_lora=true\noption.max_loras=0");
    let able = TokenModelInfo { has_adapters: true, ..info(ModelKind::Decoder) };
    let reason = load_failure(FakeEngine::new("fake", able), &dir);
    assert!(reason.contains("option.max_loras=0: expected a whole number above 0"), "{reason}");
}

#[tokio::test]
async fn an_adapter_is_merged_only_by_an_engine_that_can() {
    let dir = dir_of(ModelKind::Decoder, "option.is_peft_model=true");
    let reason = load_failure(FakeEngine::new("fake", info(ModelKind::Decoder)), &dir);
    assert!(reason.contains("there is no adapter_config.json"), "{reason}");
    write(dir.path(), "adapter_config.json", r#"{"base_model_name_or_path": "base"}"#);
    fs::remove_file(dir.path().join("config.json")).unwrap();
    let base = dir.path().join("base");
    fs::create_dir(&base).unwrap();
    write(&base, "config.json", &config_json("GPT2LMHeadModel"));
    let reason = load_failure(FakeEngine::new("fake", info(ModelKind::Decoder)), &dir);
    assert!(reason.contains("engine fake merges no adapters"), "{reason}");
}
