//! What the frames hold: greetings, what is to be loaded, what a model is.

use drivetrain_engine::{DefaultDecoderInput, HeadKind, ModelKind, TokenModelInfo};

use super::wire::{Fields, Frame, Kind, WireError};

/// What both sides are of: the ranks of a model have to be of one version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What a rank has to show before it is listened to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token([u8; 16]);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// A new one, from the system's random numbers.
    pub(crate) fn random() -> std::io::Result<Self> {
        use std::io::Read;
        let mut token = [0; 16];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut token)?;
        Ok(Self(token))
    }

    /// As it stands in the environment of the ranks.
    pub(crate) fn to_text(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u128::from_str_radix(text, 16).ok().filter(|_| is_hex)?;
        Some(Self(number.to_be_bytes()))
    }

    /// Whether they are the same; how long that takes does not depend on where they differ.
    fn is(self, other: Self) -> bool {
        self.0.iter().zip(other.0).fold(0, |found, (a, b)| found | (a ^ b)) == 0
    }
}

/// Who a rank is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) rank: u32,
    pub(crate) pid: u32,
    pub(crate) host: String,
    pub(crate) version: String,
}

impl Hello {
    pub(crate) fn write<'f>(&self, token: Token, frame: &'f mut Frame) -> &'f [u8] {
        let frame = frame.begin(Kind::Hello).bytes(&token.0).u32(self.rank).u32(self.pid);
        frame.text(self.host.as_bytes()).text(self.version.as_bytes()).finished()
    }

    /// Nothing but the token is looked at before that is right.
    pub(crate) fn read(body: &[u8], token: Token) -> Result<Self, WireError> {
        let mut fields = Fields(body);
        if !Token(fields.array()?).is(token) {
            return Err(WireError::Garbage("its token is not the model's"));
        }
        let (rank, pid) = (fields.u32()?, fields.u32()?);
        let hello = Self { rank, pid, host: fields.string()?, version: fields.string()? };
        fields.end()?;
        Ok(hello)
    }

    /// The rank in messages.
    pub(crate) fn title(&self) -> String {
        format!("rank {} (process {} on host {})", self.rank, self.pid, self.host)
    }
}

/// What the ranks are to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LoadOrder {
    pub(crate) degree: u32,
    pub(crate) n_threads: u32,
    pub(crate) model_name: String,
    pub(crate) model_dir: Vec<u8>,
    /// Empty for none.
    pub(crate) adapter_dir: Vec<u8>,
    /// Keys and values in turn.
    pub(crate) options: Vec<String>,
    /// What [`super::digest::digest`] says of the leader's files, and of its adapter's.
    pub(crate) digest: String,
}

impl LoadOrder {
    pub(crate) fn write<'f>(&self, frame: &'f mut Frame) -> &'f [u8] {
        let frame = frame.begin(Kind::Load).u32(self.degree).u32(self.n_threads);
        let frame = frame.text(self.model_name.as_bytes()).text(&self.model_dir);
        frame.text(&self.adapter_dir).texts(&self.options).text(self.digest.as_bytes()).finished()
    }

    pub(crate) fn read(body: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields(body);
        let order = Self {
            degree: fields.u32()?,
            n_threads: fields.u32()?,
            model_name: fields.string()?,
            model_dir: fields.text()?.to_vec(),
            adapter_dir: fields.text()?.to_vec(),
            options: fields.strings()?,
            digest: fields.string()?,
        };
        fields.end()?;
        Ok(order)
    }
}

const MODELS: [ModelKind; 3] = [ModelKind::Decoder, ModelKind::EncoderDecoder, ModelKind::Encoder];
const INPUTS: [DefaultDecoderInput; 3] =
    [DefaultDecoderInput::None, DefaultDecoderInput::ShiftRight, DefaultDecoderInput::RotateLast];
const HEADS: [HeadKind; 6] = [
    HeadKind::None,
    HeadKind::LanguageModel,
    HeadKind::MaskedLanguageModel,
    HeadKind::SequenceClassification,
    HeadKind::TokenClassification,
    HeadKind::QuestionAnswering,
];

fn number_of<T: PartialEq>(all: &[T], one: &T) -> u8 {
    all.iter().position(|known| known == one).and_then(|n| u8::try_from(n).ok()).unwrap_or(u8::MAX)
}

fn one_of<T: Copy>(all: &[T], number: u8) -> Result<T, WireError> {
    all.get(usize::from(number)).copied().ok_or(WireError::Garbage("it has an unknown number"))
}

/// What a rank has loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Loaded {
    pub(crate) info: TokenModelInfo,
    /// Bytes of this rank's weights.
    pub(crate) own_bytes: u64,
}

impl Loaded {
    pub(crate) fn write<'f>(&self, frame: &'f mut Frame) -> &'f [u8] {
        let info = &self.info;
        let frame = frame.begin(Kind::Ready);
        frame.u8(number_of(&MODELS, &info.kind)).u32(info.vocab);
        frame.u8(number_of(&HEADS, &info.head)).u32(info.n_logits).u32(info.dim);
        frame.u32(info.max_positions).u32(info.max_encoder_positions);
        frame.u64(info.kv_capacity_tokens).u64(info.kv_bytes_per_token).u32(info.kv_block_tokens);
        frame.u64(info.cross_capacity_tokens).u64(info.cross_bytes_per_token);
        frame.u32(info.max_sequences).u32(info.max_batch_tokens);
        frame.u64(info.weight_bytes).u64(info.n_parameters);
        frame.u8(number_of(&INPUTS, &info.default_decoder_input));
        frame.u8(u8::from(info.has_pooler)).u8(u8::from(info.has_adapters));
        frame.u64(self.own_bytes).finished()
    }

    pub(crate) fn read(body: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields(body);
        let f = &mut fields;
        let info = TokenModelInfo {
            kind: one_of(&MODELS, f.u8()?)?,
            vocab: f.u32()?,
            head: one_of(&HEADS, f.u8()?)?,
            n_logits: f.u32()?,
            dim: f.u32()?,
            max_positions: f.u32()?,
            max_encoder_positions: f.u32()?,
            kv_capacity_tokens: f.u64()?,
            kv_bytes_per_token: f.u64()?,
            kv_block_tokens: f.u32()?,
            cross_capacity_tokens: f.u64()?,
            cross_bytes_per_token: f.u64()?,
            max_sequences: f.u32()?,
            max_batch_tokens: f.u32()?,
            weight_bytes: f.u64()?,
            n_parameters: f.u64()?,
            default_decoder_input: one_of(&INPUTS, f.u8()?)?,
            has_pooler: f.u8()? != 0,
            has_adapters: f.u8()? != 0,
        };
        let loaded = Self { info, own_bytes: f.u64()? };
        fields.end()?;
        Ok(loaded)
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::read_any;
    use super::*;

    fn body(frame: &[u8]) -> Vec<u8> {
        let (mut body, mut from) = (Vec::new(), frame);
        read_any(&mut from, &mut body).unwrap().unwrap();
        body
    }

    #[test]
    fn messages_come_back_as_they_were_sent() {
        let mut frame = Frame::default();
        let token = Token::random().unwrap();
        assert_eq!(Token::parse(&token.to_text()), Some(token));
        let hello = Hello { rank: 1, pid: 2, host: "a".to_owned(), version: VERSION.to_owned() };
        let sent = body(hello.write(token, &mut frame));
        assert_eq!(Hello::read(&sent, token).unwrap(), hello);
        let order = LoadOrder {
            degree: 3,
            n_threads: 4,
            model_name: "m".to_owned(),
            model_dir: b"/m".to_vec(),
            adapter_dir: Vec::new(),
            options: vec!["a".to_owned(), "b".to_owned()],
            digest: "0f".to_owned(),
        };
        assert_eq!(LoadOrder::read(&body(order.write(&mut frame))).unwrap(), order);
        let info = TokenModelInfo {
            kind: ModelKind::Encoder,
            head: HeadKind::QuestionAnswering,
            n_parameters: 1 << 40,
            has_pooler: true,
            default_decoder_input: DefaultDecoderInput::RotateLast,
            ..TokenModelInfo::default()
        };
        let loaded = Loaded { info, own_bytes: 5 };
        assert_eq!(Loaded::read(&body(loaded.write(&mut frame))).unwrap(), loaded);
    }

    #[test]
    fn a_greeting_without_the_token_is_refused() {
        let (token, other) = (Token([7; 16]), Token([8; 16]));
        let hello = Hello { rank: 0, pid: 1, host: String::new(), version: String::new() };
        let sent = body(hello.write(other, &mut Frame::default()));
        assert!(Hello::read(&sent, token).unwrap_err().to_string().contains("token"));
        assert!(Hello::read(&[], token).is_err());
        assert_eq!(Token::parse("12"), None);
        assert_eq!(Token::parse(&"g".repeat(32)), None);
        assert_eq!(Token::parse(&format!("+{}", "1".repeat(31))), None);
    }
}
