//! `drivetrain generate`: one answer on the terminal.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use drivetrain_config::{Environment, ModelSpec, ServerConfig, ServerOverrides};
use drivetrain_host::{Host, TaskReply, TaskRequest};
use serde_json::{Map, Value};

use crate::args::{Generate, Plugins};

/// Loads the model, answers `args.text`, and prints the answer.
pub(crate) fn generate(args: &Generate) -> Result<()> {
    let env = Environment::from_process();
    crate::logging::start(&env, "warn");
    let parameters = parameters(&args.parameters)?;
    let (host, spec) = host_of(&args.model, &args.plugins, env)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(answer(&host, &spec, &args.text, parameters))
}

/// A host for the one model that `model` names, which is not loaded yet.
pub(crate) fn host_of(
    model: &str,
    plugins: &Plugins,
    env: Environment,
) -> Result<(Host, ModelSpec)> {
    let overrides = ServerOverrides {
        models: vec![model.to_owned()],
        plugins: plugins.plugins.clone(),
        ..ServerOverrides::default()
    };
    let (config, _) = ServerConfig::resolve(&overrides, &env)?;
    let [spec] = config.models.as_slice() else {
        bail!("{model}: expected one model, as `path` or `name=path`");
    };
    let spec = spec.clone();
    let engines = crate::engines::discover(plugins, &env);
    Ok((Host::new(Arc::new(config), env, engines), spec))
}

async fn answer(
    host: &Host,
    spec: &ModelSpec,
    text: &str,
    parameters: Map<String, Value>,
) -> Result<()> {
    let model = host.load(spec)?;
    crate::progress::show(std::slice::from_ref(&model)).await;
    model.wait_ready().await.with_context(|| format!("model {}", model.name()))?;
    let request = TaskRequest {
        id: "terminal".to_owned(),
        inputs: vec![text.into()],
        is_single: true,
        parameters,
        deadline: None,
    };
    match model.submit(request).await? {
        TaskReply::Generated(outputs, _) => {
            for output in outputs {
                println!("{}", output.reply_text());
            }
        }
        TaskReply::Document(document) => println!("{document}"),
        TaskReply::Embeddings(embeddings) => {
            for embedding in embeddings {
                let numbers: Vec<String> = embedding.values.iter().map(f32::to_string).collect();
                println!("{}", numbers.join(" "));
            }
        }
        TaskReply::Features(features) => {
            for row in features.iter().flat_map(|features| features.rows()) {
                let numbers: Vec<String> = row.iter().map(f32::to_string).collect();
                println!("{}", numbers.join(" "));
            }
        }
        other => bail!("this model answers with {other:?}, which has no form on a terminal"),
    }
    Ok(())
}

/// `KEY=VALUE` arguments as request parameters: a value that reads as JSON is that, any other text.
fn parameters(pairs: &[String]) -> Result<Map<String, Value>> {
    let mut parameters = Map::new();
    for pair in pairs {
        let Some((key, value)) = pair.split_once('=') else {
            bail!("-P {pair}: expected KEY=VALUE");
        };
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        parameters.insert(key.to_owned(), value);
    }
    Ok(parameters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_json_where_they_can_be() {
        let pairs = ["max_new_tokens=3", "stop=end", "flag=true"].map(String::from);
        let parameters = parameters(&pairs).unwrap();
        assert_eq!(
            Value::Object(parameters),
            serde_json::json!({"max_new_tokens": 3, "stop": "end", "flag": true})
        );
        assert!(super::parameters(&["x".to_owned()]).is_err());
    }
}
