//! Bars on a terminal while models load.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

use drivetrain_host::{ModelHandle, ModelStatus, Stop, Watch};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Shows a bar a model until all of them have left the loading state. Without a terminal nothing is
/// drawn, and this only waits.
pub(crate) async fn show(models: &[ModelHandle]) {
    let bars = MultiProgress::new();
    let mut shown: HashMap<String, ProgressBar> = HashMap::new();
    loop {
        let mut n_loading = 0;
        for model in models {
            let ModelStatus::Loading { stage, done, total } = model.status() else {
                if let Some(bar) = shown.remove(model.name()) {
                    bar.finish_and_clear();
                }
                continue;
            };
            n_loading += 1;
            let bar = shown
                .entry(model.name().to_owned())
                .or_insert_with(|| bars.add(ProgressBar::new(0).with_style(style())));
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(format!("{}: {stage}", model.name()));
        }
        if n_loading == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A bar for a download that no model's loading shows; on standard error, and only on a terminal.
#[derive(Debug, Default)]
pub(crate) struct DownloadBar(OnceLock<ProgressBar>);

impl Watch for DownloadBar {
    fn progress(&self, stage: &str, done: u64, total: u64) {
        let bar = self.0.get_or_init(|| ProgressBar::new(0).with_style(style()));
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(stage.to_owned());
    }

    fn stop(&self) -> Option<Stop> {
        None
    }
}

impl Drop for DownloadBar {
    fn drop(&mut self) {
        if let Some(bar) = self.0.get() {
            bar.finish_and_clear();
        }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{msg:40} [{bar:40}] {binary_bytes} of {binary_total_bytes}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}
