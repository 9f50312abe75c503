//! What the description of a model says: its shape, its heads, its tasks, the memory it takes.

use drivetrain_artifacts::{ModelConfig, ModelDir, Weights};
use drivetrain_host::{HeadKind, ModelKind, Task, suited};
use drivetrain_transformer::{
    Architecture, Attention, CanonicalWeights, HeadTask, Kind, TransformerError,
};
use serde_json::{Value, json};

use super::chain;
use super::sheet::{Sheet, bytes_text, group};

/// Most labels that are named as text.
const MOST_LABELS: usize = 20;

/// Adds all that follows from a description and the weights.
pub(super) fn describe(
    sheet: &mut Sheet,
    dir: &ModelDir,
    config: &ModelConfig,
    architecture: &Architecture,
    weights: &Weights,
) {
    shape(sheet, architecture);
    let found = CanonicalWeights::new(architecture, weights);
    let has = |name: &str| found.as_ref().is_ok_and(|found| found.contains(name));
    let head = head_kind(architecture, &has);
    let n_logits = match (&architecture.task_head, head) {
        (_, HeadKind::None) => 0,
        (Some(head), _) => head.width,
        (None, _) => architecture.vocab,
    };
    let kind = match architecture.kind {
        Kind::Decoder => ModelKind::Decoder,
        Kind::EncoderDecoder => ModelKind::EncoderDecoder,
        Kind::Encoder => ModelKind::Encoder,
    };
    let tasks = suited(dir, config, kind, (head, n_logits), architecture.output_dim());
    let labels = tasks.as_ref().map_or(&[][..], |tasks| &tasks.labels);
    match &found {
        Ok(found) => show_head(sheet, head, n_logits, labels, found),
        Err(_) => sheet.text("head", "unknown: tensors are missing, see below"),
    }
    if architecture.pooler.is_some() {
        let is_there = has("pooler.weight");
        let text = if is_there { "in the files" } else { "none in the files" };
        sheet.fact("pooler", text, is_there.into());
    }
    match &tasks {
        Ok(tasks) => {
            show_default(sheet, tasks.default);
            sheet.list("tasks", tasks.tasks.iter().map(|task| task.name().to_owned()).collect());
        }
        Err(error) => sheet.text("task", chain(error)),
    }
    let n_used = found.as_ref().map_or(weights.n_parameters(), CanonicalWeights::n_parameters);
    let n_parameters = weights.n_parameters();
    let note = if n_used == n_parameters {
        String::new()
    } else {
        format!(", {} of them used", group(n_used))
    };
    sheet.fact("parameters", group(n_parameters) + &note, n_parameters.into());
    let stored = found.as_ref().map_or(weights.total_bytes(), CanonicalWeights::total_bytes);
    memory(sheet, architecture, n_used, stored);
    tensors(sheet, &found);
}

/// Adds what follows from a description alone.
pub(super) fn shape(sheet: &mut Sheet, architecture: &Architecture) {
    let kind = match architecture.kind {
        Kind::Decoder => "decoder",
        Kind::EncoderDecoder => "encoder-decoder",
        Kind::Encoder => "encoder",
    };
    sheet.text("kind", kind);
    let mut lines = Vec::new();
    let mut stacks = serde_json::Map::new();
    for stack in architecture.stacks() {
        let n_layers = stack.layers.len();
        let mut text = format!("{} {n_layers}", stack.name);
        let mut facts = json!({"layers": n_layers, "max_positions": stack.max_positions});
        if let Some(layer) = stack.layers.first() {
            let attention = &layer.self_attention;
            text.push_str(&format!(", {} heads of {}", attention.n_heads, attention.head_dim));
            if attention.n_kv_heads != attention.n_heads {
                text.push_str(&format!(", {} for keys and values", attention.n_kv_heads));
            }
            text.push_str(&format!(", feed-forward {}", layer.feed_forward.width));
            facts["heads"] = attention.n_heads.into();
            facts["kv_heads"] = attention.n_kv_heads.into();
            facts["head_dim"] = attention.head_dim.into();
            facts["feed_forward"] = layer.feed_forward.width.into();
        }
        let windows = stack.layers.iter().filter_map(|layer| layer.self_attention.window);
        let n_windows = windows.clone().count();
        if let Some(window) = windows.max() {
            text.push_str(&format!(", window {window} in {n_windows}"));
            facts["window"] = window.into();
        }
        text.push_str(&format!(", at most {} tokens", stack.max_positions));
        lines.push(text);
        stacks.insert(stack.name.to_owned(), facts);
    }
    sheet.lines("layers", lines, stacks.into());
    sheet.fact("hidden size", architecture.dim.to_string(), architecture.dim.into());
    sheet.fact("vocabulary", group(u64::from(architecture.vocab)), architecture.vocab.into());
}

/// Adds the task that follows from the class, for a model without a description.
pub(super) fn plain_task(sheet: &mut Sheet, config: &ModelConfig) {
    show_default(sheet, Task::of_architectures(&config.architectures));
}

fn show_default(sheet: &mut Sheet, task: Option<Task>) {
    match task {
        Some(task) => {
            let text = format!("{task} (inferred; option.task decides)");
            sheet.fact("task", text, task.name().into());
        }
        None => {
            let text = "none follows from the architectures: set option.task";
            sheet.fact("task", text, Value::Null);
        }
    }
}

/// The head that an engine has: the one of the class, if it is in the files.
fn head_kind(architecture: &Architecture, has: &dyn Fn(&str) -> bool) -> HeadKind {
    let Some(head) = &architecture.task_head else {
        let has_head = architecture.head.is_some() && has("head.weight");
        return if has_head { HeadKind::LanguageModel } else { HeadKind::None };
    };
    // A tied matrix is always there; the part that is the head's own says whether it is.
    let own = if head.dense.is_some() { "head.dense.weight" } else { "head.weight" };
    if !has(own) {
        return HeadKind::None;
    }
    match head.task {
        HeadTask::MaskedLm => HeadKind::MaskedLanguageModel,
        HeadTask::SequenceClassification => HeadKind::SequenceClassification,
        HeadTask::TokenClassification => HeadKind::TokenClassification,
        HeadTask::QuestionAnswering => HeadKind::QuestionAnswering,
    }
}

fn show_head(
    sheet: &mut Sheet,
    head: HeadKind,
    n_logits: u32,
    labels: &[String],
    weights: &CanonicalWeights<'_>,
) {
    let name = match head {
        HeadKind::None => return sheet.fact("head", "none", Value::Null),
        HeadKind::LanguageModel => "language model",
        HeadKind::MaskedLanguageModel => "masked tokens",
        HeadKind::SequenceClassification => "sequence classification",
        HeadKind::TokenClassification => "token classification",
        HeadKind::QuestionAnswering => "question answering",
    };
    let mut facts = json!({"kind": name, "columns": n_logits});
    let mut lines = Vec::new();
    if matches!(head, HeadKind::LanguageModel | HeadKind::MaskedLanguageModel) {
        let first = weights.first_name("head.weight");
        let is_tied = first.as_deref().is_some_and(|first| first != "head.weight");
        facts["tied"] = is_tied.into();
        let tied = if is_tied { "tied to the token table" } else { "with a matrix of its own" };
        lines.push(format!("{name}, {tied}"));
    } else if labels.is_empty() {
        lines.push(name.to_owned());
    } else {
        let shown = labels.iter().take(MOST_LABELS).map(String::as_str);
        let mut shown = shown.collect::<Vec<_>>().join(", ");
        if labels.len() > MOST_LABELS {
            shown.push_str(&format!(" and {} more", labels.len() - MOST_LABELS));
        }
        lines.push(format!("{name}, {n_logits} labels: {shown}"));
        facts["labels"] = labels.into();
    }
    sheet.lines("head", lines, facts);
}

/// Adds what the weights take in each type, and what the caches take for a token.
fn memory(sheet: &mut Sheet, architecture: &Architecture, n_parameters: u64, stored: u64) {
    let bytes = |each: u64| n_parameters.saturating_mul(each);
    let text = format!(
        "as stored {}, f32 {}, bf16 or f16 {}, int8 about {}",
        bytes_text(stored),
        bytes_text(bytes(4)),
        bytes_text(bytes(2)),
        bytes_text(bytes(1))
    );
    let facts = json!({"stored": stored, "f32": bytes(4), "f16": bytes(2), "int8": bytes(1)});
    sheet.fact("memory", text, facts);
    let Some(decoder) = &architecture.decoder else { return };
    let elements = |attention: &Attention| 2 * attention.kv_width() as u64;
    let own: u64 = decoder.layers.iter().map(|layer| elements(&layer.self_attention)).sum();
    let crosses = decoder.layers.iter().filter_map(|layer| layer.cross_attention.as_ref());
    let cross: u64 = crosses.map(elements).sum();
    let caches = [("KV cache", own, "a token"), ("cross cache", cross, "a source token")];
    for (name, n_elements, each) in caches {
        if n_elements > 0 {
            let (f32, f16) = (4 * n_elements, 2 * n_elements);
            let text = format!("{} {each} at f32, {} at f16", bytes_text(f32), bytes_text(f16));
            sheet.fact(name, text, json!({"f32": f32, "f16": f16}));
        }
    }
}

/// Adds the tensors that are missing, of a wrong shape, or of no use.
fn tensors(sheet: &mut Sheet, found: &Result<CanonicalWeights<'_>, TransformerError>) {
    let (problems, unused) = match found {
        Ok(found) => (Vec::new(), found.unused()),
        Err(TransformerError::Tensors { problems, unused, .. }) => {
            (problems.iter().map(ToString::to_string).collect(), &unused[..])
        }
        Err(error) => (vec![chain(error)], &[][..]),
    };
    if !problems.is_empty() {
        sheet.lines("wrong", problems.clone(), problems.into());
    }
    if !unused.is_empty() {
        sheet.list("unused", unused.to_vec());
    }
}
