//! Rows of the table: the server's keys.

use super::{Key, Kind};

/// The server's keys by group.
pub(super) const GROUPS: &[(&str, &[Key])] = &[
    ("Listeners", LISTENERS),
    ("Models at start", START),
    ("Defaults of every model", MODEL_DEFAULTS),
    ("Requests and replies", REQUESTS),
    ("Health", HEALTH),
    ("Places", PLACES),
    ("Accepted without effect", IGNORED),
];

const LISTENERS: &[Key] = &[
    Key::new(
        "inference_address",
        Kind::Address,
        "http://127.0.0.1:8080",
        "Where inference is served; in a SageMaker container the default is \
         `http://0.0.0.0:8080`. `SAGEMAKER_BIND_TO_PORT` replaces the port",
    ),
    Key::new(
        "management_address",
        Kind::Address,
        "http://127.0.0.1:8080",
        "Where models are managed; the same address as inference means one listener with every \
         route. In a SageMaker container the default is `http://0.0.0.0:8080`",
    ),
    Key::new(
        "cluster_address",
        Kind::Address,
        "http://127.0.0.1:8888",
        "Where the nodes of a cluster coordinate; opened only for clusters",
    ),
    Key::new(
        "number_of_netty_threads",
        Kind::Whole,
        "0",
        "Threads that handle connections; 0 takes one per core",
    ),
    Key::new("keystore", Kind::Path, "", "TLS key store"),
    Key::new("keystore_pass", Kind::Secret, "changeit", "The key store's password"),
    Key::new("keystore_type", Kind::Word, "PKCS12", "The key store's format"),
    Key::new("certificate_file", Kind::Path, "", "TLS certificate chain, PEM"),
    Key::new("private_key_file", Kind::Path, "", "TLS private key, PEM"),
];

const START: &[Key] = &[
    Key::new(
        "load_models",
        Kind::Text,
        "",
        "Models to load at start: `ALL` (also when unset) scans the model store, `NONE` loads \
         nothing, else a list of `[name:version:engine:devices]=url`, `name=path` or `path`",
    ),
    Key::new("model_store", Kind::Path, "", "Directory that is scanned for models"),
    Key::new(
        "model_url_pattern",
        Kind::Text,
        "",
        "Regular expression of the URLs that a first request may load a model from",
    ),
    Key::new(
        "wait_model_loading",
        Kind::Bool,
        "true",
        "Open the port only when every model of the start is loaded",
    ),
    Key::new("fail_fast", Kind::Bool, "false", "Exit with 137 when a model fails"),
];

const MODEL_DEFAULTS: &[Key] = &[
    Key::new("job_queue_size", Kind::Count, "1000", "Requests that may wait for a model")
        .env(&["MAX_CONCURRENT_REQUESTS"]),
    Key::new("batch_size", Kind::Count, "1", "Most requests in one batch"),
    Key::new(
        "max_batch_delay",
        Kind::Millis,
        "100",
        "How long the first request of a batch waits for company, in milliseconds",
    ),
    Key::new("max_idle_time", Kind::Seconds, "60", "Idle life of a surplus worker, in seconds"),
    Key::new("load_on_devices", Kind::Devices, "*", "Devices to load models on"),
    Key::new(
        "reserved_memory_mb",
        Kind::Megabytes,
        "500",
        "Memory that loading a model leaves free, in megabytes",
    ),
    Key::new("min_workers", Kind::Whole, "", "Least workers of a model"),
    Key::new("max_workers", Kind::Whole, "", "Most workers of a model"),
    Key::new("retry_threshold", Kind::Whole, "0", "Worker failures tolerated before a model fails"),
];

const REQUESTS: &[Key] = &[
    Key::new("max_request_size", Kind::Bytes, "67108864", "Largest request body, in bytes")
        .sagemaker(&["SAGEMAKER_MAX_REQUEST_SIZE", "SAGEMAKER_MAX_PAYLOAD_IN_MB"]),
    Key::new(
        "chunked_read_timeout",
        Kind::Seconds,
        "120",
        "How long a streamed reply may stand still, in seconds",
    ),
    Key::new(
        "request_id_header_key",
        Kind::HeaderName,
        "x-request-id",
        "Header that a request's id is read from; on SageMaker the default is \
         `X-Amzn-SageMaker-Inference-Id`",
    ),
    Key::new("cors_allowed_origin", Kind::Text, "", "`Access-Control-Allow-Origin` of replies"),
    Key::new("cors_allowed_methods", Kind::Text, "", "`Access-Control-Allow-Methods` of replies"),
    Key::new("cors_allowed_headers", Kind::Text, "", "`Access-Control-Allow-Headers` of replies"),
    Key::new(
        "bad_request_http_code",
        Kind::ErrorStatus,
        "400",
        "Status for input that can't be used",
    ),
    Key::new("wlm_error_http_code", Kind::ErrorStatus, "503", "Status for worker errors"),
    Key::new("throttle_error_http_code", Kind::ErrorStatus, "503", "Status for a full queue"),
    Key::new("timeout_http_code", Kind::ErrorStatus, "400", "Status for a request that timed out"),
    Key::new("server_error_http_code", Kind::ErrorStatus, "500", "Status for any other error"),
    Key::new(
        "allow_request_handler_override",
        Kind::Bool,
        "false",
        "Let a request name the handler that answers it",
    )
    .env(&["ALLOW_REQUEST_HANDLER_OVERRIDE"]),
    Key::new("prometheus", Kind::Bool, "false", "Serve metrics at `/server/metrics`"),
];

const HEALTH: &[Key] = &[
    Key::new(
        "allow_multi_status",
        Kind::Bool,
        "false",
        "`/ping` answers 207 while a model is loading",
    ),
    Key::new(
        "error_rate_wlm",
        Kind::ErrorRate,
        "",
        "More worker errors than this turn `/ping` to 503 for good; `N` in a minute, or \
         `N/window` with an ISO 8601 window such as `PT5M`",
    ),
    Key::new("error_rate_server", Kind::ErrorRate, "", "The same for unexpected errors"),
    Key::new("error_rate_model", Kind::ErrorRate, "", "The same for errors of handlers"),
    Key::new("error_rate_any", Kind::ErrorRate, "", "The same for all errors together"),
    Key::new(
        "health_check_override",
        Kind::Bool,
        "false",
        "Keep models in service despite worker failures",
    ),
    Key::new(
        "sagemaker_health_check_override",
        Kind::Bool,
        "false",
        "`/ping` answers 500 while a model has fewer workers than it should",
    )
    .env(&["SAGEMAKER_HEALTH_CHECK_OVERRIDE"]),
    Key::new(
        "sagemaker_multi_model",
        Kind::Bool,
        "false",
        "The container serves a multi-model endpoint: models come and go by request",
    )
    .env(&["SAGEMAKER_MULTI_MODEL"]),
];

const PLACES: &[Key] = &[
    Key::new("cache_dir", Kind::Path, "", "Where unpacked and downloaded files go")
        .env(&["DJL_CACHE_DIR"]),
    Key::new(
        "download_dir",
        Kind::Path,
        "",
        "Where models of `s3://` and `https://` go, if not to the cache",
    ),
    Key::new(
        "offline",
        Kind::Bool,
        "false",
        "Use no network: models come from what is on the disk. `HF_HUB_OFFLINE` and \
         `TRANSFORMERS_OFFLINE` say so of the hub alone",
    )
    .env(&["DJL_OFFLINE"]),
    Key::new(
        "hf_token",
        Kind::Secret,
        "",
        "Hugging Face credential; unset, the file that `HF_TOKEN_PATH` names or `token` in \
         `hf_home` is read",
    )
    .env(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]),
    Key::new("hf_endpoint", Kind::Word, "https://huggingface.co", "Where the Hugging Face hub is")
        .env(&["HF_ENDPOINT"]),
    Key::new(
        "hf_home",
        Kind::Path,
        "",
        "Hugging Face's directory; unset, `huggingface` in `XDG_CACHE_HOME` or `~/.cache`, and \
         `/tmp/.cache/huggingface` in a SageMaker container",
    )
    .env(&["HF_HOME"]),
    Key::new(
        "hf_hub_cache",
        Kind::Path,
        "",
        "Cache of models of the hub, shared with Hugging Face's Python client; unset, `hub` in \
         `hf_home`",
    )
    .env(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]),
];

const IGNORED: &[Key] = &[
    Key::ignored("use_native_io", "Transport tuning of another server"),
    Key::ignored("io_ratio", "Transport tuning of another server"),
    Key::ignored(
        "plugin_folder",
        "Server plugins are Java archives; engines come from `--plugins`",
    ),
    Key::ignored("opts", "Java options"),
    Key::ignored("features", "Names backends of another image"),
    Key::ignored("cache_multitenant", "Result cache"),
    Key::ignored("cache_batch", "Result cache"),
    Key::ignored("memory_cache_capacity", "Result cache"),
    Key::ignored("ddb_cache", "Result cache"),
    Key::ignored("ddb_table_name", "Result cache"),
    Key::ignored("s3_cache", "Result cache"),
    Key::ignored("s3_cache_bucket", "Result cache"),
    Key::ignored("s3_cache_key_prefix", "Result cache"),
    Key::ignored("s3_cache_autocreate", "Result cache"),
];
