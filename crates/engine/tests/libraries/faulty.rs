//! A library whose engine panics, or fails, where `option.panic` or `option.error` says.

use drivetrain_engine::{
    Batch, DefaultDecoderInput, DevicePlan, Engine, EngineError, EngineInfo, ErrorKind, HeadKind,
    LoadPlan, LoadRequest, LoadedModel, LogLevel, MetricKind, ModelKind, Outputs, PlacedModule,
    PlannedPart, Reply, Request, RequestModel, RequestModelInfo, SeqId, Services, TokenModel,
    TokenModelInfo,
};

drivetrain_engine::export_engine!(Faulty);

struct Faulty;

impl Engine for Faulty {
    fn info(&self) -> EngineInfo {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        EngineInfo {
            name: "faulty".into(),
            aliases: texts(&["broken", "torn"]),
            version: "0.0.1".into(),
            description: "panics on demand".into(),
            devices: texts(&["cpu"]),
            capabilities: texts(&["panics"]),
        }
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<LoadedModel, EngineError> {
        let place = request.options.get("panic").unwrap_or("nowhere").to_owned();
        trip(&place, "load");
        if request.options.get("error").is_some() {
            let causes = vec!["layer 3".to_owned(), "disk is full".to_owned()];
            return Err(EngineError::with_causes(ErrorKind::OutOfMemory, "no room", causes));
        }
        let services = request.services.clone();
        services.log(LogLevel::Warn, request.model_name);
        services.metric(MetricKind::Gauge, "load_bytes", 2.5);
        services.progress(
            &request.model_dir.display().to_string(),
            1,
            request.n_threads.get() as u64,
        );
        if services.cancelled() {
            return Err(EngineError::new(ErrorKind::Cancelled, "cancelled"));
        }
        let model = Model { place, services };
        Ok(match request.options.get("kind") {
            Some("request") => LoadedModel::Request(Box::new(model)),
            _ => LoadedModel::Token(Box::new(model)),
        })
    }

    fn plan(&self, request: &LoadRequest<'_>) -> Result<Option<LoadPlan>, EngineError> {
        trip(request.options.get("panic").unwrap_or("nowhere"), "plan");
        if request.options.get("error").is_some() {
            let causes = vec!["cpu: 3 bytes of 2".to_owned()];
            return Err(EngineError::with_causes(ErrorKind::OutOfMemory, "no room", causes));
        }
        if request.options.get("empty").is_some() {
            return Ok(Some(LoadPlan::default()));
        }
        request.services.log(LogLevel::Info, "planning");
        let part = |what: &str, bytes| PlannedPart { what: what.into(), bytes };
        let placed = |module: String, device: &str| PlacedModule {
            module,
            device: device.into(),
            bytes: request.n_threads.get() as u64,
        };
        let parts = vec![part("weights", u64::MAX), part("KV cache", 0)];
        Ok(Some(LoadPlan {
            devices: vec![
                DevicePlan { name: "cpu".into(), limit_bytes: Some(0), parts },
                DevicePlan { name: "disk".into(), ..DevicePlan::default() },
            ],
            placements: vec![
                placed(request.model_dir.display().to_string(), "cpu"),
                placed(request.model_name.to_owned(), "disk"),
            ],
            kv_capacity_tokens: u64::MAX,
            cross_capacity_tokens: 7,
            max_batch_tokens: u32::MAX,
            max_sequences: 3,
            notes: request.options.iter().map(|(key, value)| format!("{key}={value}")).collect(),
        }))
    }
}

struct Model {
    place: String,
    services: Services,
}

fn trip(place: &str, here: &str) {
    if place == here {
        panic!("tripped in {here}");
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        trip(&self.place, "drop");
    }
}

impl TokenModel for Model {
    fn info(&self) -> TokenModelInfo {
        trip(&self.place, "info");
        TokenModelInfo {
            kind: ModelKind::EncoderDecoder,
            vocab: 5,
            head: HeadKind::LanguageModel,
            n_logits: 5,
            dim: 2,
            max_positions: 9,
            max_encoder_positions: 9,
            kv_capacity_tokens: 99,
            kv_bytes_per_token: 1,
            kv_block_tokens: 1,
            cross_capacity_tokens: 99,
            cross_bytes_per_token: 1,
            max_sequences: 9,
            max_batch_tokens: 99,
            weight_bytes: 0,
            n_parameters: 0,
            default_decoder_input: DefaultDecoderInput::ShiftRight,
            has_pooler: false,
            has_adapters: false,
        }
    }

    fn encode(&mut self, batch: &Batch<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError> {
        trip(&self.place, "encode");
        out.next_hidden(batch.n_hidden_rows())?.fill(0.25);
        Ok(())
    }

    fn forward(&mut self, batch: &Batch<'_>, out: &mut Outputs<'_>) -> Result<(), EngineError> {
        trip(&self.place, "forward");
        let n_rows = batch.n_logits_rows();
        match self.place.as_str() {
            "too few rows" => out.next_logits(n_rows - 1)?.fill(1.0),
            "too many rows" => out.next_logits(n_rows + 1)?.fill(1.0),
            _ => out.next_logits(n_rows)?.fill(batch.tokens().as_ptr() as usize as f32),
        }
        Ok(())
    }

    fn fork(&mut self, from: SeqId, to: SeqId, len: u32) -> Result<(), EngineError> {
        trip(&self.place, "fork");
        Err(EngineError::bad_input(format!("{} {} {len}", from.0, to.0)))
    }

    fn truncate(&mut self, sequence: SeqId, len: u32) -> Result<(), EngineError> {
        trip(&self.place, "truncate");
        Err(EngineError::new(ErrorKind::DeviceLost, format!("{} {len}", sequence.0)))
    }

    fn release(&mut self, _: SeqId) {
        trip(&self.place, "release");
    }

    fn n_sequences(&self) -> usize {
        trip(&self.place, "n_sequences");
        42
    }

    fn health(&mut self) -> Result<(), EngineError> {
        trip(&self.place, "health");
        Ok(())
    }
}

impl RequestModel for Model {
    fn info(&self) -> RequestModelInfo {
        trip(&self.place, "info");
        RequestModelInfo { max_concurrency: 8, max_batch: 4 }
    }

    /// Sends the headers, then the content entries one by one until nobody waits.
    fn call(&self, request: &Request<'_>, reply: &mut dyn Reply) -> Result<(), EngineError> {
        trip(&self.place, "call");
        if request.content.is_empty() {
            return Err(EngineError::bad_input(format!("request {}: no content", request.id)));
        }
        reply.head(207, request.id, request.properties);
        for (name, bytes) in request.content {
            if !reply.frame(name.as_bytes()) || !reply.frame(bytes) {
                self.services.log(LogLevel::Info, "nobody waits");
                return Ok(());
            }
        }
        Ok(())
    }

    fn health(&self) -> Result<(), EngineError> {
        trip(&self.place, "health");
        Ok(())
    }
}
