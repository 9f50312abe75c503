//! S3: prefixes and archives from a real server, through a network that fails.

use std::fs;
use std::path::Path;

use drivetrain_sources::{FetchOptions, Hidden};
use drivetrain_tests::{
    Answered, CREDENTIALS, Fault, Reference, S3, Server, ServerOptions, Wire, archive, copy_model,
    fixture, skip, write,
};
use serde_json::json;

use super::{bring, noise, options, refused};

const BUCKET: &str = "models";
const BIG: usize = 3_000_000;

/// The server with a model under `m`, and a proxy before it.
struct Case {
    s3: S3,
    wire: Wire,
    folder: tempfile::TempDir,
}

impl Case {
    fn new(test: &str) -> Option<Self> {
        let s3 = match S3::start().unwrap() {
            Ok(s3) => s3,
            Err(why) => {
                skip(test, &why);
                return None;
            }
        };
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        fs::create_dir_all(model.join("1_Pooling")).unwrap();
        write(&model, "config.json", "{\"a\": 1}");
        write(&model, "1_Pooling/config.json", "{}");
        write(&model, "with blank+ü%20.txt", "odd");
        fs::write(model.join("model.safetensors"), noise(BIG)).unwrap();
        s3.put(&model, BUCKET, "m").unwrap();
        let wire = Wire::proxy(s3.port());
        Some(Self { s3, wire, folder })
    }

    fn options(&self) -> FetchOptions {
        options(self.folder.path(), &self.wire.url())
    }

    fn check_brought(&self, dir: &Path) {
        for name in
            ["config.json", "1_Pooling/config.json", "with blank+ü%20.txt", "model.safetensors"]
        {
            let wanted = fs::read(self.folder.path().join("model").join(name)).unwrap();
            let found = fs::read(dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(found == wanted, "{name} differs");
        }
    }

    /// Bytes of the weights that were sent.
    fn n_sent(&self) -> u64 {
        let seen = self.wire.seen();
        let weights = seen.iter().filter(|asked| asked.path.contains("model.safetensors"));
        weights.filter(|asked| asked.method == "GET").map(|asked| asked.n_sent()).sum()
    }
}

fn slow_down() -> Fault {
    let body = "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Please reduce your \
                request rate.</Message></Error>";
    Fault::Instead(Answered { status: 503, headers: Vec::new(), body: body.into() })
}

#[test]
fn a_prefix_is_mirrored_and_kept() {
    let Some(case) = Case::new("a_prefix_is_mirrored_and_kept") else { return };
    let dir = bring("s3://models/m", &case.options()).unwrap();
    case.check_brought(&dir);
    assert_eq!(case.n_sent(), BIG as u64);
    let seen = case.wire.seen();
    let pieces: Vec<_> = seen.iter().filter(|asked| asked.range().is_some()).collect();
    assert!(pieces.len() >= BIG / (256 << 10), "{} pieces", pieces.len());
    assert!(
        pieces.iter().all(|asked| asked.header("if-match").is_some()),
        "a piece without If-Match"
    );

    // Nothing changed: nothing but the list is asked for, with or without a slash at the end.
    case.wire.forget();
    assert_eq!(bring("s3://models/m/", &case.options()).unwrap(), dir);
    assert_eq!(case.wire.seen().len(), 1);
    // One file changed: that one comes, and the old snapshot stays as it was.
    case.s3.boto3(&["text", BUCKET, "m/config.json", "{\"a\": 2}"]).unwrap();
    case.wire.forget();
    let new = bring("s3://models/m", &case.options()).unwrap();
    assert_eq!(fs::read_to_string(new.join("config.json")).unwrap(), "{\"a\": 2}");
    assert_eq!(fs::read_to_string(dir.join("config.json")).unwrap(), "{\"a\": 1}");
    assert_eq!(case.n_sent(), 0);
    // Without a network the last one serves.
    let mut offline = case.options();
    offline.offline = true;
    case.wire.forget();
    assert_eq!(bring("s3://models/m", &offline).unwrap(), new);
    assert_eq!(case.wire.seen().len(), 0);
    assert!(refused("s3://models/other", &offline).contains("the network is off limits"));
}

#[test]
fn throttling_truncation_and_errors_are_tried_again() {
    let Some(case) = Case::new("throttling_truncation_and_errors_are_tried_again") else { return };
    case.wire.rule("list-type=2", 2, slow_down());
    case.wire.rule("model.safetensors", 8, slow_down());
    case.wire.rule("model.safetensors", 5, Fault::Cut(50_000));
    case.wire.rule("config.json", 1, Fault::Cut(3));
    let failed = Answered { status: 500, ..Answered::default() };
    case.wire.rule("model.safetensors", 2, Fault::Instead(failed));
    case.check_brought(&bring("s3://models/m", &case.options()).unwrap());
    // What had come before a cut did not come again.
    let bodies = case.wire.seen();
    let errors: u64 = bodies
        .iter()
        .filter(|asked| asked.path.contains("model.safetensors") && asked.n_sent() < 1_000)
        .map(|asked| asked.n_sent())
        .sum();
    assert_eq!(case.n_sent() - errors, BIG as u64);
}

#[test]
fn an_object_that_changes_meanwhile_is_brought_as_it_is_then() {
    let Some(case) = Case::new("an_object_that_changes_meanwhile") else { return };
    case.wire.rule("model.safetensors", 3, Fault::Pace(150_000));
    let new = noise(BIG / 2);
    let changed = case.folder.path().join("changed");
    fs::write(&changed, &new).unwrap();
    // One piece after another, so that some are yet to be asked for when the change comes.
    let mut options = case.options();
    options.limits.n_connections = 1;
    let dir = std::thread::scope(|scope| {
        let start = scope.spawn(|| bring("s3://models/m", &options).unwrap());
        while case.n_sent() < 100_000 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        case.s3.put(&changed, BUCKET, "m/model.safetensors").unwrap();
        start.join().unwrap()
    });
    assert!(fs::read(dir.join("model.safetensors")).unwrap() == new);
}

#[test]
fn refusals_say_what_to_do() {
    let Some(case) = Case::new("refusals_say_what_to_do") else { return };
    let check = |text: &str, wanted: &str| {
        let found = refused(text, &case.options());
        assert!(found.contains(wanted), "{text}: {found}");
    };
    check("s3://models/none", "there is nothing under this prefix");
    check("s3://models/none.tar.gz", "there is no such object");
    check("s3://no-such-bucket/m", "there is no bucket no-such-bucket");
    let denied = |code: &str| {
        let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
        Fault::Instead(Answered { status: 403, headers: Vec::new(), body: body.into() })
    };
    case.wire.rule("list-type=2", 1, denied("AccessDenied"));
    check("s3://models/m", "access is denied: the credentials need s3:ListBucket on models");
    case.wire.rule("model.safetensors", 100, denied("AccessDenied"));
    check("s3://models/m", "model.safetensors: access is denied");
    case.wire.heal();
    for key in ["evil/../x", "evil//x", "evil/a\u{1}b", "evil/A"] {
        if key == "evil/A" {
            case.s3.boto3(&["text", "hostile", "evil/a", "x"]).unwrap();
        }
        case.s3.boto3(&["text", "hostile", key, "x"]).unwrap();
        let text = refused("s3://hostile/evil", &case.options());
        let is_named =
            text.contains("can't be the name of a file") || text.contains("the file name");
        assert!(is_named || text.contains("S3 does not answer as it should"), "{key:?}: {text}");
        case.s3.boto3(&["remove", "hostile", key, ""]).unwrap();
    }
    let mut none = case.options();
    none.s3.variables = vec![
        ("AWS_ENDPOINT_URL".to_owned(), Hidden::new(case.wire.url())),
        ("AWS_EC2_METADATA_DISABLED".to_owned(), Hidden::new("true")),
    ];
    assert!(refused("s3://models/m", &none).contains("there are no credentials: set AWS_ACCESS"));
    // A public bucket needs none.
    case.s3.boto3(&["public", BUCKET, "m", ""]).unwrap();
    case.wire.forget();
    none.s3.variables.push(("AWS_SKIP_SIGNATURE".to_owned(), Hidden::new("true")));
    case.check_brought(&bring("s3://models/m", &none).unwrap());
    assert!(case.wire.seen().iter().all(|asked| asked.header("authorization").is_none()));
}

#[test]
fn credentials_come_from_a_profile_too() {
    let Some(case) = Case::new("credentials_come_from_a_profile_too") else { return };
    let aws = case.folder.path().join("home/.aws");
    fs::create_dir_all(&aws).unwrap();
    write(
        &aws,
        "credentials",
        "[team]\naws_access_key_id = AKIAPROFILE\naws_secret_access_key = verysecret\n",
    );
    let config =
        format!("[profile team]\nregion = eu-north-1\nendpoint_url = {}\n", case.wire.url());
    write(&aws, "config", &config);
    let mut options = case.options();
    options.s3.variables = vec![("AWS_PROFILE".to_owned(), Hidden::new("team"))];
    options.s3.home = Some(case.folder.path().join("home"));
    case.check_brought(&bring("s3://models/m", &options).unwrap());
    let seen = case.wire.seen();
    let signed = seen.first().and_then(|asked| asked.header("authorization")).unwrap();
    assert!(signed.contains("AKIAPROFILE") && signed.contains("eu-north-1"), "{signed}");
}

#[test]
fn a_list_of_many_pages_is_read_to_its_end() {
    let Some(case) = Case::new("a_list_of_many_pages_is_read_to_its_end") else { return };
    case.s3.boto3(&["many", BUCKET, "pages", "1010"]).unwrap();
    let dir = bring("s3://models/pages", &case.options()).unwrap();
    for number in 0..1010 {
        let path = dir.join(format!("n/{number}.txt"));
        assert_eq!(fs::read_to_string(path).unwrap(), number.to_string());
    }
    let lists = case.wire.seen().iter().filter(|asked| asked.path.contains("list-type")).count();
    assert_eq!(lists, 2);
    let mut few = case.options();
    few.limits.max_files = 1000;
    assert!(refused("s3://models/pages", &few).contains("at most 1000 are downloaded"));
}

/// The variables that point a server at the proxy.
fn env(case: &Case) -> Vec<(String, String)> {
    let cache = case.folder.path().join("cache").display().to_string();
    let own = [("AWS_ENDPOINT_URL_S3", case.wire.url()), ("SERVING_DOWNLOAD_DIR", cache)];
    let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
    let keys = CREDENTIALS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    own.chain(keys).collect()
}

#[test]
fn a_prefix_an_archive_and_a_model_id_are_served() {
    let Some(case) = Case::new("a_prefix_an_archive_and_a_model_id_are_served") else { return };
    let gpt2 = copy_model("gpt2", &case.folder.path().join("gpt2"));
    write(&gpt2, "serving.properties", "option.task=text-generation\n");
    case.s3.put(&gpt2, BUCKET, "gpt2").unwrap();
    let packed = case.folder.path().join("model.tar.gz");
    archive(&gpt2, ".", &packed);
    case.s3.put(&packed, BUCKET, "packed/gpt2.tar.gz").unwrap();
    let pointer = case.folder.path().join("pointer");
    fs::create_dir(&pointer).unwrap();
    write(&pointer, "serving.properties", "option.model_id=s3://models/gpt2/\n");
    let server = Server::with(&ServerOptions {
        models: vec![
            "prefix=s3://models/gpt2".to_owned(),
            "archive=s3://models/packed/gpt2.tar.gz".to_owned(),
            format!("pointer={}", pointer.display()),
        ],
        env: env(&case)
            .into_iter()
            .chain([("HF_MODEL_ID".to_owned(), "s3://models/gpt2".to_owned())])
            .collect(),
        ..ServerOptions::default()
    })
    .unwrap();
    let reference = Reference::read(&fixture("gpt2")).unwrap();
    let body = json!({"inputs": reference.prompt(0).unwrap(), "parameters": {"max_new_tokens": 8}});
    let mut replies = Vec::new();
    for name in ["prefix", "archive", "pointer", "gpt2"] {
        let path = format!("/predictions/{name}");
        let reply = server.post(&path, "application/json", body.to_string()).unwrap();
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        assert_eq!(reply.status, 200, "{name}: {text}");
        replies.push(text);
    }
    replies.dedup();
    assert_eq!(replies.len(), 1, "{replies:?}");
    assert!(!server.log().contains("verysecret"));
}

#[test]
fn a_presigned_address_serves_an_archive() {
    let Some(case) = Case::new("a_presigned_address_serves_an_archive") else { return };
    let packed = case.folder.path().join("m.tar.gz");
    archive(&case.folder.path().join("model"), ".", &packed);
    case.s3.put(&packed, BUCKET, "m.tar.gz").unwrap();
    let url = format!("{}/models/m.tar.gz?X-Amz-Signature=verysecret", case.wire.url());
    case.wire.rule_for("GET", "m.tar.gz", 2, Fault::Cut(10_000));
    let path = bring(&url, &case.options()).unwrap();
    assert!(fs::read(&path).unwrap() == fs::read(&packed).unwrap());
    let none = format!("{}/models/none.tar.gz?X-Amz-Signature=verysecret", case.wire.url());
    assert!(refused(&none, &case.options()).contains("the server answers 404"));
}
