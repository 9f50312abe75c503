//! A server that is killed halfway goes on where it was, and asks for nothing twice.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use drivetrain_tests::{
    CREDENTIALS, Fault, Hub, Repository, S3, Server, ServerOptions, Wire, copy_model, skip,
};

use super::noise;

/// Bytes that make the model worth interrupting.
const BALLAST: usize = 24_000_000;

/// A model whose weights have a tensor that no family reads, so that it loads all the same.
fn heavy(to: &Path) {
    copy_model("gpt2", to);
    let path = to.join("model.safetensors");
    let old = fs::read(&path).unwrap();
    let n_header = u64::from_le_bytes(old[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&old[8..8 + n_header]).unwrap();
    let start = old.len() - 8 - n_header;
    header["ballast"] = serde_json::json!({"dtype": "U8", "shape": [BALLAST], "data_offsets": [start, start + BALLAST]});
    let mut text = header.to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut new = (text.len() as u64).to_le_bytes().to_vec();
    new.extend_from_slice(&text);
    new.extend_from_slice(&old[8 + n_header..]);
    new.extend_from_slice(&noise(BALLAST));
    fs::write(&path, new).unwrap();
}

/// Kills a server when at least `n_bytes` of `wire` have come, starts another one, and returns what
/// came first and what came then.
fn interrupt(options: &ServerOptions, wire: &Wire, of: &str, n_bytes: u64) -> (u64, u64) {
    let n_sent = || -> u64 {
        let seen = wire.seen();
        let of_weights =
            seen.iter().filter(|asked| asked.method == "GET" && asked.path.contains(of));
        of_weights.map(|asked| asked.n_sent()).sum()
    };
    wire.rule(of, usize::MAX, Fault::Pace(1_500_000));
    let server = Server::spawn(options).unwrap();
    server.until("half of it has come", |_| n_sent() >= n_bytes).unwrap();
    let kill = Command::new("kill").args(["-KILL", &server.pid().to_string()]).status().unwrap();
    assert!(kill.success());
    let exit = server.exit(Duration::from_secs(10)).unwrap();
    assert_eq!(exit.code, None, "{}", exit.log);
    // What was on its way when the process died.
    std::thread::sleep(Duration::from_millis(300));
    let first = n_sent();
    wire.heal();
    wire.forget();
    let server = Server::with(options).unwrap();
    assert_eq!(server.get("/ping").unwrap().status, 200);
    assert!(server.log().contains("continuing a download"), "{}", server.log());
    (first, n_sent())
}

/// What came twice is what was read from the network and not yet written: less than is gathered for
/// one write on each of the two connections that pieces of 16 MiB make here, and what the sockets held.
fn check(first: u64, second: u64, size: u64) {
    let missing = size - first.min(size);
    assert!(second >= missing, "{second} bytes came, and {missing} were missing");
    assert!(second < size - (1 << 20), "{second} of {size} bytes came again, {first} came before");
    let twice = first + second - size;
    let at_most = 2 * ((1 << 20) + (512 << 10));
    assert!(twice <= at_most, "{twice} bytes came twice");
}

#[test]
fn a_killed_server_goes_on_with_the_hubs_model() {
    let folder = tempfile::tempdir().unwrap();
    heavy(&folder.path().join("model"));
    let hub = Hub::new();
    let repository = Repository::of(&folder.path().join("model"));
    let size = repository.files["model.safetensors"].len() as u64;
    hub.put("tiny/heavy", repository);
    let cache = folder.path().join("hf").display().to_string();
    let options = ServerOptions {
        models: vec!["m=tiny/heavy".to_owned()],
        env: vec![("HF_ENDPOINT".to_owned(), hub.api.url()), ("HF_HOME".to_owned(), cache)],
        ..ServerOptions::default()
    };
    let (first, second) = interrupt(&options, &hub.content, "Signature", size * 3 / 4);
    check(first, second, size);
    let blobs = folder.path().join("hf/hub/models--tiny--heavy/blobs");
    let left: Vec<_> = fs::read_dir(blobs)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("drivetrain"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_killed_server_goes_on_with_the_model_of_s3() {
    let s3 = match S3::start().unwrap() {
        Ok(s3) => s3,
        Err(why) => return skip("a_killed_server_goes_on_with_the_model_of_s3", &why),
    };
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    heavy(&model);
    let size = fs::metadata(model.join("model.safetensors")).unwrap().len();
    s3.put(&model, "models", "heavy").unwrap();
    let wire = Wire::proxy(s3.port());
    let own = [
        ("AWS_ENDPOINT_URL", wire.url()),
        ("SERVING_DOWNLOAD_DIR", folder.path().join("cache").display().to_string()),
    ];
    let keys = CREDENTIALS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let env = own.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(keys).collect();
    let options = ServerOptions {
        models: vec!["m=s3://models/heavy".to_owned()],
        env,
        ..ServerOptions::default()
    };
    let (first, second) = interrupt(&options, &wire, "model.safetensors", size * 3 / 4);
    check(first, second, size);
}
