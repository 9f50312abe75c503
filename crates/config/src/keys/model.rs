//! Rows of the table: a model's keys.

use super::{Key, Kind};

/// A model's keys by group.
pub(super) const GROUPS: &[(&str, &[Key])] = &[
    ("What is served", MODEL),
    ("Batching and limits", BATCHING),
    ("Workers and devices", WORKERS),
    ("Precision and placement", PRECISION),
    ("Replies", REPLIES),
    ("Python handlers", PYTHON),
    ("Passed to the engine: generation and loading", PASSED_OPTIONS),
    ("Passed to the engine: DeepSpeed, FasterTransformer, Neuron", PASSED_ENGINES),
    ("Passed to the engine: other back ends", PASSED_BACK_ENDS),
    ("Passed to the engine: translators and tokenizers", ARGUMENTS),
];

const MODEL: &[Key] = &[
    Key::new(
        "engine",
        Kind::Engine,
        "auto",
        "Engine that runs the model, without case; `Python` with a built-in handler means the \
         default engine, `PyTorch` is `torch`, `MPI` is `deepspeed`",
    )
    .alias(&["engine_name"]),
    Key::option(
        "model_id",
        Kind::Word,
        "",
        "Where the weights are if not beside the file: a path, a Hugging Face id or an `s3://` \
         prefix",
    )
    .agreeing(&["s3url"]),
    Key::option("revision", Kind::Word, "", "Revision of a Hugging Face id")
        .env(&["HF_REVISION", "HF_MODEL_REVISION"]),
    Key::option(
        "task",
        Kind::Word,
        "",
        "Task to serve, such as `feature-extraction` or `text-generation`; unset, the model's \
         architecture decides",
    )
    .env(&["HF_TASK"]),
    Key::option("trust_remote_code", Kind::Bool, "false", "Run code that comes with the model")
        .env(&["HF_MODEL_TRUST_REMOTE_CODE", "HF_TRUST_REMOTE_CODE"]),
    Key::option("modelName", Kind::Word, "", "Name that metrics show"),
];

const BATCHING: &[Key] = &[
    Key::new(
        "batch_size",
        Kind::Count,
        "",
        "Most requests in one batch; above 1, `rolling_batch` \
         is off",
    )
    .alias(&["max_dynamic_batch_size"]),
    Key::new(
        "max_batch_delay",
        Kind::Millis,
        "",
        "How long the first request of a batch waits for company, in milliseconds",
    ),
    Key::new("job_queue_size", Kind::Count, "", "Requests that may wait for the model"),
    Key::option(
        "rolling_batch",
        Kind::RollingBatch,
        "auto",
        "How requests of a generating model share its steps",
    ),
    Key::option("max_rolling_batch_size", Kind::Count, "32", "Most sequences that decode at once")
        .agreeing(&["max_num_seqs"])
        .env(&["MAX_BATCH_SIZE"]),
    Key::option(
        "max_rolling_batch_prefill_tokens",
        Kind::Count,
        "",
        "Most prompt tokens of one step",
    )
    .env(&["MAX_BATCH_PREFILL_TOKENS"]),
    Key::option(
        "enable_prefix_caching",
        Kind::Bool,
        "true",
        "Whether what prompts begin with is kept for requests to come, within the KV cache",
    ),
    Key::option(
        "prompt_lookup_num_tokens",
        Kind::Whole,
        "0",
        "Most tokens that are looked up in the text and checked in one step; 0 for none",
    ),
    Key::option(
        "max_matching_ngram_size",
        Kind::Count,
        "2",
        "Longest run of last tokens that is looked up",
    ),
    Key::option("predict_timeout", Kind::Seconds, "120", "Longest a request may take, in seconds")
        .env(&["PREDICT_TIMEOUT"])
        .sagemaker(&["SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS"]),
    Key::option(
        "model_loading_timeout",
        Kind::Seconds,
        "240",
        "Longest a model may take to load, in seconds",
    )
    .env(&["MODEL_LOADING_TIMEOUT"])
    .sagemaker(&["SAGEMAKER_STARTUP_TIMEOUT"]),
];

const WORKERS: &[Key] = &[
    Key::new("minWorkers", Kind::Whole, "", "Least workers of the model")
        .by_device()
        .alias(&["min_worker"])
        .sagemaker(&["SAGEMAKER_NUM_MODEL_WORKERS"]),
    Key::new("maxWorkers", Kind::Whole, "", "Most workers of the model")
        .by_device()
        .alias(&["max_worker"])
        .sagemaker(&["SAGEMAKER_NUM_MODEL_WORKERS"]),
    Key::new("max_idle_time", Kind::Seconds, "", "Idle life of a surplus worker, in seconds"),
    Key::new("load_on_devices", Kind::Devices, "", "Devices to load the model on")
        .alias(&["device"]),
    Key::new(
        "required_memory_mb",
        Kind::Megabytes,
        "",
        "Memory the model needs, in megabytes; with less it is refused",
    )
    .by_device(),
    Key::new(
        "reserved_memory_mb",
        Kind::Megabytes,
        "",
        "Memory that loading the model leaves free, in megabytes",
    )
    .by_device(),
    Key::new(
        "retry_threshold",
        Kind::Whole,
        "",
        "Worker failures tolerated before the model fails",
    ),
    Key::option(
        "parallel_loading",
        Kind::Bool,
        "false",
        "Start all workers at once instead of in turn",
    ),
    Key::new("log_request_metric", Kind::Bool, "false", "Log metrics of every request"),
];

const PRECISION: &[Key] = &[
    Key::option("dtype", Kind::Dtype, "auto", "Element type to compute in").alias(&["data_type"]),
    Key::option(
        "device_map",
        Kind::Text,
        "",
        "Which layers go to which device: `auto`, \
         `balanced`, `sequential`, a device, or a JSON object",
    ),
    Key::option(
        "tensor_parallel_degree",
        Kind::Degree,
        "",
        "Partitions of every layer; `max` is one for each device. Unset, the engine decides",
    )
    .agreeing(&["tensor_parallel_size"])
    .env(&["TENSOR_PARALLEL_DEGREE", "SM_NUM_GPUS"]),
    Key::option("pipeline_parallel_degree", Kind::Count, "1", "Groups of consecutive layers")
        .agreeing(&["pipeline_parallel_size"])
        .env(&["PIPELINE_PARALLEL_DEGREE"]),
    Key::option(
        "mpi_mode",
        Kind::Bool,
        "false",
        "Run the partitions as processes that `mpirun` starts; the engine's name `MPI` asks for it",
    ),
    Key::option("quantize", Kind::Word, "", "Quantisation, as the engine names it")
        .env(&["HF_MODEL_QUANTIZE"]),
];

const REPLIES: &[Key] = &[
    Key::option("output_formatter", Kind::OutputFormatter, "json", "How generated text is written"),
    Key::option("enable_streaming", Kind::Streaming, "false", "Send a reply step by step"),
    Key::option(
        "tgi_compat",
        Kind::Bool,
        "false",
        "Reply in the shapes of Text Generation \
         Inference",
    ),
    Key::option("bedrock_compat", Kind::Bool, "false", "Speak the third-party schema"),
];

const PYTHON: &[Key] = &[
    Key::option(
        "entryPoint",
        Kind::Word,
        "",
        "Python handler: a file of the model, a module, a path or a URL; `djl_python.*` means the \
         built-in handler",
    )
    .env(&["DJL_ENTRY_POINT"]),
    Key::passed("handler", "Function of the handler that answers requests"),
    Key::passed("pythonExecutable", "Python interpreter").env(&["PYTHON_EXECUTABLE"]),
    Key::passed("env", "Variables of the worker process, `NAME=VALUE` separated with commas"),
    Key::passed("enable_venv", "Make a virtual environment for the model"),
    Key::passed("async_mode", "The handler answers many requests at a time"),
    Key::passed(
        "max_worker_memory_mb",
        "Most memory that a Python worker may have for itself, in megabytes; one with more is replaced",
    ),
    Key::passed(
        "max_in_flight",
        "Most requests at a time of a Python worker; unset, 64 for an `async def`, else 1, or what \
         the handler says with `@concurrent(n)`",
    ),
];

const PASSED_OPTIONS: &[Key] = &[
    Key::passed("waiting_steps", "Decode steps before new requests are admitted"),
    Key::passed("stop_sequence", "Texts that end a generation, as `['a','b']`"),
    Key::passed("decoding_strategy", "`greedy`, `sample` or `contrastive`"),
    Key::passed("max_memory", "Memory of each device that weights may take"),
    Key::passed("offload_folder", "Directory for weights that no memory holds"),
    Key::passed("virtual_devices", "Accelerators made of the CPU's memory, to try a device map"),
    Key::passed(
        "kv_cache_dtype",
        "Element type of cached keys and values: `fp32`, `fp16` or `bf16`",
    ),
    Key::passed(
        "packed_cache",
        "Keep packed weights in the model's directory, so that the next start packs nothing",
    ),
    Key::passed("deterministic", "The same bits whatever the batch, the chunks and the threads"),
    Key::passed("isolation", "`process` runs the engine in a process of its own"),
    Key::passed("load_in_8bit", "Older spelling of `quantize=bitsandbytes8`"),
    Key::passed("load_in_4bit", "Older spelling of `quantize=bitsandbytes4`"),
    Key::passed("low_cpu_mem_usage", "Load without a second copy of the weights"),
    Key::passed("disable_flash_attn", "Do without fused attention"),
    Key::passed(
        "is_peft_model",
        "Whether the model is an adapter that is merged into its base; found out unless set",
    ),
    Key::passed("draft_model_id", "Smaller model that proposes tokens"),
    Key::passed("speculative_draft_model", "Smaller model that proposes tokens"),
    Key::passed("spec_length", "Tokens proposed at a time"),
    Key::passed("enable_lora", "Whether requests may name LoRA adapters"),
    Key::passed("max_loras", "LoRA adapters loaded at once; 4 unless set"),
    Key::passed("max_lora_rank", "Highest rank of a LoRA adapter; without limit unless set"),
    Key::passed(
        "max_cpu_loras",
        "LoRA adapters loaded at once, where that is more than `max_loras`",
    ),
    Key::passed("enable_stateful_sessions", "Keep state between requests of a session"),
    Key::passed("sessions_path", "Directory of the sessions"),
    Key::passed("sessions_expiration", "Life of a session, in seconds"),
    Key::passed("sessions_s3url", "Mirror of the sessions"),
    Key::passed("use_passive_workers", "Workers of sessions wait for their turn"),
    Key::passed("max_output_size", "Largest reply"),
    Key::passed("chat_template", "Template that a chat becomes a prompt with"),
    Key::passed("chat_template_content_format", "Form of message contents in the template"),
    Key::passed("enable_auto_tool_choice", "Let the model decide on tool calls"),
    Key::passed("tool_call_parser", "How tool calls are found in the text"),
    Key::passed("enable_reasoning", "Separate reasoning from the answer"),
    Key::passed("reasoning_parser", "How reasoning is found in the text"),
];

const PASSED_ENGINES: &[Key] = &[
    Key::passed("max_tokens", "Longest sequence that memory is reserved for"),
    Key::passed("enable_cuda_graph", "Record the steps as CUDA graphs"),
    Key::passed("triangular_masking", "Causal attention mask"),
    Key::passed("return_tuple", "Layers return tuples"),
    Key::passed("mpi_hostfile", "Hosts of the processes under MPI, in a file as Open MPI has them"),
    Key::passed(
        "mpi_leader_address",
        "Name or address by which processes on other hosts reach this one",
    ),
    Key::passed("training_mp_size", "Partitions of the checkpoint"),
    Key::passed("checkpoint", "Checkpoint description file"),
    Key::passed("save_mp_checkpoint_path", "Where partitioned weights are written"),
    Key::passed("deepspeed_config_path", "DeepSpeed's own configuration file"),
    Key::passed("n_positions", "Longest sequence of the compiled model"),
    Key::passed("unroll", "Layers compiled together"),
    Key::passed("use_stable_diffusion", "The model is a diffusion pipeline"),
];

const PASSED_BACK_ENDS: &[Key] = &[
    Key::passed("gpu_memory_utilization", "Share of a GPU's memory to use")
        .env(&["CUDA_MEMORY_FRACTION"]),
    Key::passed("max_model_len", "Longest sequence"),
    Key::passed("enforce_eager", "Do without CUDA graphs").inverse_env("ENABLE_CUDA_GRAPHS"),
    Key::passed("enable_chunked_prefill", "Split long prompts over steps"),
    Key::passed("speculative_config", "Speculative decoding of vLLM"),
    Key::passed("served_model_name", "Name that replies show"),
    Key::passed("lmcache_auto_config", "Cache of keys and values"),
    Key::passed("lmcache_config_file", "Cache of keys and values"),
    Key::passed("tokenizer_mode", "How TensorRT-LLM loads the tokenizer"),
    Key::passed("max_input_len", "Longest prompt"),
    Key::passed("max_seq_len", "Longest sequence"),
    Key::passed("max_num_tokens", "Most tokens of one step"),
    Key::passed("max_beam_width", "Most beams"),
    Key::passed("backend", "Back end of TensorRT-LLM"),
    Key::passed("enable_block_reuse", "Share cached prefixes"),
    Key::passed("free_gpu_memory_fraction", "Share of free memory for the cache"),
    Key::passed("kv_cache_free_gpu_mem_fraction", "Share of free memory for the cache"),
    Key::passed("host_cache_size", "Cache in the machine's memory"),
    Key::passed("model_format", "Format of a scikit-learn or XGBoost model"),
    Key::passed("skops_trusted_types", "Types a skops file may hold"),
    Key::passed("trust_insecure_model_files", "Load pickles"),
    Key::passed("default_accept", "Content type of replies when the request names none"),
    Key::passed("optimization", "Optimisation level of ONNX export"),
    Key::passed("ortDevice", "Device of ONNX Runtime"),
    Key::passed("interOpNumThreads", "Threads between operators"),
    Key::passed("intraOpNumThreads", "Threads within an operator"),
    Key::passed("executionMode", "ONNX Runtime's execution mode"),
    Key::passed("optLevel", "ONNX Runtime's optimisation level"),
    Key::passed("memoryPatternOptimization", "ONNX Runtime's memory patterns"),
    Key::passed("cpuArenaAllocator", "ONNX Runtime's arena"),
    Key::passed("disablePerSessionThreads", "ONNX Runtime's shared threads"),
    Key::passed("customOpLibrary", "ONNX Runtime's extra operators"),
    Key::passed("profilerOutput", "ONNX Runtime's profile"),
    Key::passed("sessionOptions", "ONNX Runtime's session options"),
    Key::passed("mapLocation", "Load TorchScript to its own device"),
    Key::passed("extraFiles", "Extra files of a TorchScript archive"),
    Key::passed("trainParam", "Whether TorchScript parameters train"),
];

const ARGUMENTS: &[Key] = &[
    Key::argument("metrics_aggregation", "Requests that metrics are averaged over"),
    Key::argument("translatorFactory", "Java class of the translator"),
    Key::argument("translator", "Java class of the translator"),
    Key::argument("application", "Path such as `nlp/text_embedding`"),
    Key::argument("batchifier", "How inputs are stacked"),
    Key::argument("model_name", "Prefix of the model's file names"),
    Key::argument("width", "Image width"),
    Key::argument("height", "Image height"),
    Key::argument("resize", "Image resizing"),
    Key::argument("centerCrop", "Image cropping"),
    Key::argument("toTensor", "Image scaling"),
    Key::argument("topK", "How many results to return"),
    Key::argument("applySoftmax", "Turn logits into probabilities"),
    Key::argument("threshold", "Least score of a result"),
    Key::argument("padding", "Padding of a batch"),
    Key::argument("truncation", "Truncation of long inputs"),
    Key::argument("maxLength", "Tokens that inputs are cut to"),
    Key::argument("modelMaxLength", "Tokens the model can take"),
    Key::argument("stride", "Overlap of cut inputs"),
    Key::argument("padToMultipleOf", "Padding granularity"),
    Key::argument("addSpecialTokens", "Add the tokenizer's special tokens"),
    Key::argument("doLowerCase", "Lower-case inputs"),
    Key::argument("stripAccents", "Strip accents"),
    Key::argument("addPrefixSpace", "Begin inputs with a space"),
    Key::argument("withOverflowingTokens", "Return what was cut off"),
    Key::argument("tokenizer", "Tokenizer's name or path"),
    Key::argument("tokenizerPath", "Tokenizer's path"),
    Key::argument("includeTokenTypes", "Feed token types"),
    Key::argument("pooling", "How token vectors become one vector"),
    Key::argument("normalize", "Scale vectors to length 1"),
    Key::argument("dense", "Dense layer after pooling"),
    Key::argument("denseActivation", "Activation of the dense layer"),
    Key::argument("layerNorm", "Normalisation after pooling"),
    Key::argument("sparse", "Sparse embeddings"),
    Key::argument("sparseLinear", "Layer of sparse embeddings"),
    Key::argument("returnDenseEmbedding", "Return the dense vector too"),
    Key::argument("reranking", "Score pairs of texts"),
    Key::argument("sigmoid", "Apply a sigmoid"),
    Key::argument("softmax", "Apply a softmax"),
    Key::argument("detail", "Return details"),
];
