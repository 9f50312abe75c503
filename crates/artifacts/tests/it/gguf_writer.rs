//! Writes GGUF files, right and wrong ones.

/// A file in the making.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    pub(crate) version: u32,
    /// Claimed numbers of tensors and keys, where they are not the true ones.
    pub(crate) n_tensors: Option<u64>,
    pub(crate) n_keys: Option<u64>,
    keys: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: Vec<u8>,
}

pub(crate) fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Writer {
    /// A file of an architecture that says no more.
    pub(crate) fn new(architecture: &str) -> Self {
        let mut writer = Self {
            version: 3,
            n_tensors: None,
            n_keys: None,
            keys: Vec::new(),
            tensors: Vec::new(),
            data: Vec::new(),
        };
        writer.text("general.architecture", architecture);
        writer
    }

    /// A key with a type's number and the bytes of its value.
    pub(crate) fn raw(&mut self, key: &str, kind: u32, value: &[u8]) -> &mut Self {
        self.keys.push([&text(key), &kind.to_le_bytes()[..], value].concat());
        self
    }

    pub(crate) fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.raw(key, 8, &text(value))
    }

    pub(crate) fn u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn f32(&mut self, key: &str, value: f32) -> &mut Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub(crate) fn array(&mut self, key: &str, kind: u32, items: &[Vec<u8>]) -> &mut Self {
        let head = [&kind.to_le_bytes()[..], &(items.len() as u64).to_le_bytes()].concat();
        self.raw(key, 9, &[head, items.concat()].concat())
    }

    /// A tensor's entry as it is to be written: dimensions innermost first.
    pub(crate) fn entry(&mut self, name: &str, dims: &[u64], dtype: u32, offset: u64) -> &mut Self {
        let dims_bytes: Vec<u8> = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
        self.tensors.push(
            [
                &text(name),
                &(dims.len() as u32).to_le_bytes()[..],
                &dims_bytes,
                &dtype.to_le_bytes(),
                &offset.to_le_bytes(),
            ]
            .concat(),
        );
        self
    }

    /// A tensor with its data, behind those that are there.
    pub(crate) fn tensor(
        &mut self,
        name: &str,
        dims: &[u64],
        dtype: u32,
        data: &[u8],
    ) -> &mut Self {
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        let offset = self.data.len() as u64;
        self.data.extend_from_slice(data);
        self.entry(name, dims, dtype, offset)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.n_keys.unwrap_or(self.keys.len() as u64).to_le_bytes());
        self.keys.iter().chain(&self.tensors).for_each(|part| out.extend(part));
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }
}

/// A llama of one layer, all in F32, with a vocabulary of sentencepiece's kind.
pub(crate) fn llama() -> Writer {
    let mut writer = Writer::new("llama");
    for (key, value) in [
        ("context_length", 64),
        ("embedding_length", 8),
        ("block_count", 1),
        ("feed_forward_length", 16),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
    ] {
        writer.u32(&format!("llama.{key}"), value);
    }
    writer.f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    let tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "▁a", "ab"];
    let kinds = [2i32, 3, 3, 6, 1, 1, 1, 1, 1];
    writer.text("tokenizer.ggml.model", "llama");
    writer.array("tokenizer.ggml.tokens", 8, &tokens.map(text));
    let scores: Vec<Vec<u8>> =
        (0..tokens.len()).map(|id| (-(id as f32)).to_le_bytes().to_vec()).collect();
    writer.array("tokenizer.ggml.scores", 6, &scores);
    writer.array("tokenizer.ggml.token_type", 5, &kinds.map(|kind| kind.to_le_bytes().to_vec()));
    writer.u32("tokenizer.ggml.bos_token_id", 1).u32("tokenizer.ggml.eos_token_id", 2);
    let floats = |n: usize| -> Vec<u8> {
        (0..n).flat_map(|idx| (idx as f32 / 64.0).to_le_bytes()).collect()
    };
    for (name, dims) in [
        ("token_embd.weight", &[8, 9][..]),
        ("output_norm.weight", &[8]),
        ("blk.0.attn_norm.weight", &[8]),
        ("blk.0.attn_q.weight", &[8, 8]),
        ("blk.0.attn_k.weight", &[8, 4]),
        ("blk.0.attn_v.weight", &[8, 4]),
        ("blk.0.attn_output.weight", &[8, 8]),
        ("blk.0.ffn_norm.weight", &[8]),
        ("blk.0.ffn_gate.weight", &[8, 16]),
        ("blk.0.ffn_up.weight", &[8, 16]),
        ("blk.0.ffn_down.weight", &[16, 8]),
    ] {
        let n = dims.iter().product::<u64>() as usize;
        writer.tensor(name, dims, 0, &floats(n));
    }
    writer
}
