//! The options of a model that ask for what this engine does not do.

use drivetrain_engine::{LogLevel, Options, Services};

/// What other engines would do otherwise, with the values that ask for nothing.
const NOT_HERE: &[(&str, &[&str])] = &[
    ("tensor_parallel_degree", &["1", "max"]),
    ("pipeline_parallel_degree", &["1"]),
    ("draft_model_id", &[""]),
    ("max_memory", &[""]),
];

/// Says which options ask for what this engine does not do: the model answers as without them.
pub(crate) fn warn_of_the_unknown(options: &Options<'_>, services: &Services) {
    for (key, neutral) in NOT_HERE {
        let Some(value) = options.get(key) else { continue };
        if !neutral.contains(&value.trim().to_ascii_lowercase().as_str()) {
            let message = format!(
                "option.{key}={value} has no effect: the fastertransformer engine computes in one \
                 process on the CPU"
            );
            services.log(LogLevel::Warn, &message);
        }
    }
}
