//! What the printers make of events, without a model.

use drivetrain_host::{
    Completion, Event, FinishReason, HostError, PromptInfo, StopCause, TokenDetail, TopToken,
};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::chat::{CHAT, ChatChunks, ChatRequest, ToolSyntax, chat_answer};
use super::completions::{COMPLETION, CompletionChunks, CompletionRequest, completed};
use super::lmi::{Dialect, LmiLines, LmiRequest, PARAMETERS, REQUEST, document};
use super::openai::Head;
use super::running::Whole;
use super::schema::{Field, SAMPLING};
use super::stream::{Framing, Printer};

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("{other}"),
    }
}

fn head() -> Head {
    Head { id: "chatcmpl-1".to_owned(), created: 7, model: "m".to_owned() }
}

fn token(id: u32, text: &str, logprob: f32) -> TokenDetail {
    let top = vec![
        TopToken { id: 1, text: "x".to_owned(), logprob: -0.1 },
        TopToken { id, text: text.to_owned(), logprob },
    ];
    TokenDetail {
        id,
        text: text.to_owned(),
        bytes: text.as_bytes().to_vec(),
        logprob: Some(logprob),
        is_special: false,
        top,
    }
}

fn special(id: u32, text: &str) -> TokenDetail {
    TokenDetail { is_special: true, ..token(id, text, -0.5) }
}

fn prompt() -> PromptInfo {
    PromptInfo { text: "ask".to_owned(), ids: vec![5, 6] }
}

/// The events of one choice, whose tokens have these texts; a special token says nothing.
fn events(choice: usize, tokens: &[TokenDetail], finish: FinishReason) -> Vec<Event> {
    let said = |token: &TokenDetail| if token.is_special { "" } else { &token.text }.to_owned();
    let mut events: Vec<Event> = tokens
        .iter()
        .map(|token| Event::Token { prompt: 0, choice, token: token.clone(), text: said(token) })
        .collect();
    let completion = done(choice, tokens, finish);
    events.push(Event::Done { text: String::new(), completion });
    events
}

fn done(choice: usize, tokens: &[TokenDetail], finish: FinishReason) -> Completion {
    Completion {
        prompt: 0,
        choice,
        text: tokens.iter().filter(|t| !t.is_special).map(|t| t.text.as_str()).collect(),
        full_text: None,
        finish,
        stop: None,
        n_prompt_tokens: 2,
        ids: tokens.iter().map(|token| token.id).collect(),
        tokens: tokens.to_vec(),
        logprob: None,
        score: None,
        seed: Some(9),
    }
}

fn whole(completions: Vec<Completion>) -> Whole {
    let first = TokenDetail { logprob: None, top: Vec::new(), ..token(5, "a", 0.0) };
    let prompt_tokens = vec![vec![first, token(6, "sk", -2.0)]];
    Whole { prompts: vec![prompt()], prompt_tokens, completions }
}

/// The lines that `printer` writes, one list an event that writes anything.
fn frames(mut printer: impl Printer, events: Vec<Event>) -> Vec<Vec<Value>> {
    let parse = |out: Vec<u8>| -> Vec<Value> {
        let text = String::from_utf8(out).unwrap();
        text.lines().filter(|l| !l.is_empty()).map(|l| serde_json::from_str(l).unwrap()).collect()
    };
    let mut all = Vec::new();
    for event in events {
        let mut out = Vec::new();
        printer.event(event, &mut out);
        if !out.is_empty() {
            all.push(parse(out));
        }
    }
    let mut out = Vec::new();
    printer.end(&mut out);
    all.push(parse(out));
    all
}

fn lmi(parameters: Value, dialect: Dialect) -> LmiRequest {
    let body = json!({"inputs": "ask", "parameters": parameters});
    LmiRequest::read(object(body), dialect).unwrap()
}

#[test]
fn an_lmi_document_has_all_its_details() {
    let request = lmi(
        json!({"details": true, "decoder_input_details": true, "top_n_tokens": 2, "n": 2}),
        Dialect::Rolling,
    );
    let tokens = [token(7, " b", -1.0), special(2, "</s>")];
    let both =
        vec![done(0, &tokens, FinishReason::EndToken), done(1, &tokens[..1], FinishReason::Length)];
    let replies = document(&request, Dialect::Rolling, &whole(both));
    let top = json!([{"id": 1, "text": "x", "log_prob": -0.1_f32}, {"id": 7, "text": " b", "log_prob": -1.0}]);
    let top_end = json!([{"id": 1, "text": "x", "log_prob": -0.1_f32}, {"id": 2, "text": "</s>", "log_prob": -0.5}]);
    let expect = json!({
        "generated_text": " b",
        "details": {
            "finish_reason": "eos_token", "generated_tokens": 2, "inputs": "ask",
            "prefill": [
                {"id": 5, "text": "a", "log_prob": null}, {"id": 6, "text": "sk", "log_prob": -2.0},
            ],
            "tokens": [
                {"id": 7, "text": " b", "log_prob": -1.0},
                {"id": 2, "text": "</s>", "log_prob": -0.5, "special_token": true},
            ],
            "top_tokens": [top, top_end],
            "best_of_sequences": [{
                "generated_text": " b", "finish_reason": "length", "generated_tokens": 1,
                "tokens": [{"id": 7, "text": " b", "log_prob": -1.0}],
            }],
        },
    });
    let found = serde_json::to_string(&replies[0]).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&found).unwrap(), reread(&expect));
}

/// As text says it: an f32 and the f64 beside it are written alike.
fn reread(value: &Value) -> Value {
    let text = value.to_string().replace("-0.10000000149011612", "-0.1");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_token_that_may_be_the_last_waits_for_the_end() {
    let lines = |parameters: Value, tokens: &[TokenDetail], finish| {
        let request = lmi(parameters, Dialect::Rolling);
        let printer = LmiLines::new(request, Dialect::Rolling, Framing::Lines, prompt(), 100);
        frames(printer, events(0, tokens, finish))
    };
    let tokens = [token(7, "b", -1.0), token(8, "c", -1.0)];
    // The length says which is the last.
    let found = lines(json!({"max_new_tokens": 2}), &tokens, FinishReason::Length);
    assert_eq!(found.len(), 3);
    assert_eq!(found[0], [json!({"token": {"id": 7, "text": "b", "log_prob": -1.0}})]);
    let last = json!({
        "token": {"id": 8, "text": "c", "log_prob": -1.0}, "generated_text": "bc",
    });
    assert_eq!(found[1], [last]);
    // So does the end token.
    let ended = [token(7, "b", -1.0), special(2, "</s>")];
    let found = lines(json!({"details": true}), &ended, FinishReason::EndToken);
    assert_eq!(found[1][0]["token"]["special_token"], true);
    assert_eq!(found[1][0]["token"]["text"], "");
    assert_eq!(found[1][0]["details"]["finish_reason"], "eos_token");
    // A stop string may end it anywhere: each line waits for the next token.
    let found = lines(json!({"stop": ["c"]}), &tokens, FinishReason::Stop);
    assert_eq!(found.len(), 3);
    assert_eq!(found[1][0]["token"]["id"], 8);
    assert_eq!(found[1][0]["generated_text"], "bc");
    // An end that nothing announced has a line of its own.
    let found = lines(json!({}), &tokens, FinishReason::Length);
    assert_eq!(found[2][0]["token"]["text"], "");
    assert_eq!(found[2][0]["generated_text"], "bc");
}

#[test]
fn an_lmi_stream_that_breaks_off_says_why_and_how_far_it_came() {
    let request = lmi(json!({}), Dialect::Rolling);
    let mut printer = LmiLines::new(request, Dialect::Rolling, Framing::Sse, prompt(), 100);
    let mut out = Vec::new();
    let event = events(0, &[token(7, "b", -1.0)], FinishReason::Length).remove(0);
    printer.event(event, &mut out);
    out.clear();
    printer.failed(HostError::ShuttingDown, &mut out);
    let text = String::from_utf8(out).unwrap();
    let frame = text.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap();
    let frame: Value = serde_json::from_str(frame).unwrap();
    assert_eq!(frame["token"]["id"], -1);
    assert_eq!(frame["token"]["error_msg"], "the server is shutting down");
    assert_eq!(frame["generated_text"], "b");
    assert_eq!(frame["details"]["finish_reason"], "error");
}

#[test]
fn completions_list_tokens_with_offsets() {
    let body = json!({"prompt": "ask", "echo": true, "logprobs": 1, "temperature": 0});
    let request = CompletionRequest::read(object(body)).unwrap();
    assert_eq!(request.fields.host["prompt_logprobs"], 1);
    assert_eq!(request.fields.host["do_sample"], false);
    let mut choice = done(0, &[token(7, "é", -1.0)], FinishReason::Stop);
    choice.stop = Some(StopCause::Text("\n".to_owned()));
    let found = json!(completed(&head(), request.how, &whole(vec![choice])));
    let choice = &found["choices"][0];
    assert_eq!(choice["text"], "aské");
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["stop_reason"], "\n");
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["a", "sk", "é"]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 3]));
    assert_eq!(logprobs["token_logprobs"], json!([null, -2.0, -1.0]));
    assert_eq!(logprobs["top_logprobs"][0], Value::Null);
    assert_eq!(logprobs["top_logprobs"][2]["é"], -1.0);
    let usage = json!({"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3});
    assert_eq!(found["usage"], usage);
}

#[test]
fn chunks_of_several_choices_keep_apart() {
    let body = json!({"prompt": "ask", "n": 2, "stream": true, "logprobs": 0});
    let request = CompletionRequest::read(object(body)).unwrap();
    let printer = CompletionChunks::new(head(), request.how, Framing::Lines, vec![prompt()]);
    let mut all = events(1, &[token(7, "b", -1.0)], FinishReason::Length);
    all.extend(events(0, &[token(8, "cc", -1.0), token(9, "d", -2.0)], FinishReason::EndToken));
    let found = frames(printer, all).concat();
    let places: Vec<(u64, &str, Value)> = found
        .iter()
        .map(|chunk| {
            let choice = &chunk["choices"][0];
            let offset = choice["logprobs"]["text_offset"].clone();
            (choice["index"].as_u64().unwrap(), choice["text"].as_str().unwrap(), offset)
        })
        .collect();
    let expect = [
        (1, "b", json!([0])),
        (1, "", Value::Null),
        (0, "cc", json!([0])),
        (0, "d", json!([2])),
        (0, "", Value::Null),
    ];
    assert_eq!(places, expect);
    assert_eq!(found[4]["choices"][0]["finish_reason"], "stop");
}

fn chat(further: Value) -> ChatRequest {
    let mut body = object(json!({
        "messages": [{"role": "user", "content": [
            {"type": "text", "text": "one"}, {"type": "text", "text": "two"},
        ]}],
        "tools": [{"type": "function", "function": {
            "name": "f", "parameters": {"type": "object", "properties": {"a": {}}},
        }}],
    }));
    body.extend(object(further));
    ChatRequest::read(body, false).unwrap()
}

#[test]
fn a_conversation_is_made_ready_for_the_template() {
    let request = chat(json!({"max_completion_tokens": 5, "top_p": 0.5}));
    assert_eq!(request.chat.messages[0]["content"], "one\ntwo");
    assert_eq!(request.chat.tools.len(), 1);
    assert!(request.chat.opens_answer && !request.chat.continues_last);
    assert_eq!(request.fields.host["max_new_tokens"], 5);
    assert_eq!(request.naming.shown("max_new_tokens"), "max_completion_tokens");
    assert_eq!(request.fields.host["do_sample"], true);
    assert_eq!(request.fields.host["top_p"], 0.5);
    let request = chat(json!({"tool_choice": "none", "response_format": {"type": "text"}}));
    assert!(request.chat.tools.is_empty());
    assert!(!request.fields.host.contains_key("response_format"));
    let forced = chat(json!({"tool_choice": {"type": "function", "function": {"name": "f"}}}));
    assert_eq!(forced.fields.host["guided_json"]["properties"], json!({"a": {}}));
    let required = chat(json!({"tool_choice": "required"}));
    assert_eq!(required.fields.host["guided_json"]["minItems"], 1);
    let calls = json!([{"role": "assistant", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}},
    ]}]);
    let earlier = chat(json!({"messages": calls}));
    let message = &earlier.chat.messages[0];
    assert_eq!(message["tool_calls"][0]["function"]["arguments"], json!({"a": 1}));
    assert_eq!(message["content"], "");
}

/// Each chunk's delta, and at last the finish reason.
fn deltas(
    request: &ChatRequest,
    syntax: ToolSyntax,
    tokens: &[TokenDetail],
) -> (Vec<Value>, Value) {
    let printer = ChatChunks::new(head(), request.how.clone(), Framing::Lines, syntax, 2);
    let chunks = frames(printer, events(0, tokens, FinishReason::EndToken)).concat();
    let finish = chunks.last().unwrap()["choices"][0]["finish_reason"].clone();
    (chunks.iter().map(|chunk| chunk["choices"][0]["delta"].clone()).collect(), finish)
}

#[test]
fn calls_are_found_in_what_is_said() {
    let request = chat(json!({}));
    let said =
        ["Well", "<tool_call>", "{\"name\":\"f\",", "\"arguments\":{\"a\":1}}", "</tool_call>"];
    let tokens: Vec<TokenDetail> =
        said.iter().zip(7..).map(|(text, id)| token(id, text, -1.0)).collect();
    let (found, finish) = deltas(&request, ToolSyntax::Hermes, &tokens);
    assert_eq!(found[0], json!({"role": "assistant", "content": ""}));
    assert_eq!(found[1], json!({"content": "Well"}));
    let function = json!({"name": "f", "arguments": "{\"a\":1}"});
    let call = json!({"index": 0, "id": "call-1-0-0", "type": "function", "function": function});
    assert_eq!(found[2], json!({"tool_calls": [call]}));
    assert_eq!(found.len(), 4);
    assert_eq!(finish, "tool_calls");
    let done = done(0, &tokens, FinishReason::EndToken);
    let answer = json!(chat_answer(&head(), &request.how, ToolSyntax::Hermes, &whole(vec![done])));
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["content"], "Well");
    assert_eq!(message["tool_calls"][0]["function"], function);
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
}

#[test]
fn the_mark_of_a_call_may_be_a_special_token() {
    let request = chat(json!({"parallel_tool_calls": false}));
    let tokens = [
        special(9, "[TOOL_CALLS]"),
        token(10, "[{\"name\": \"f\", \"arguments\": {}}", -1.0),
        token(11, ", {\"name\": \"g\"}]", -1.0),
    ];
    let (found, finish) = deltas(&request, ToolSyntax::Mistral, &tokens);
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(found[1]["tool_calls"][0]["function"]["name"], "f");
    assert_eq!(finish, "tool_calls");
    let whole = whole(vec![done(0, &tokens, FinishReason::EndToken)]);
    let answer = json!(chat_answer(&head(), &request.how, ToolSyntax::Mistral, &whole));
    let message = &answer["choices"][0]["message"];
    assert!(message["content"].is_null());
    assert_eq!(message["tool_calls"].as_array().unwrap().len(), 1);
}

#[test]
fn calls_that_are_forced_are_the_answer() {
    let named = chat(json!({"tool_choice": {"type": "function", "function": {"name": "f"}}}));
    let tokens = [token(7, "{\"a\":", -1.0), token(8, "1}", -1.0)];
    let (found, finish) = deltas(&named, ToolSyntax::Hermes, &tokens);
    assert_eq!(found[1]["tool_calls"][0]["function"]["name"], "f");
    let arguments: String = found
        .iter()
        .filter_map(|delta| delta["tool_calls"][0]["function"]["arguments"].as_str())
        .collect();
    assert_eq!(arguments, "{\"a\":1}");
    assert_eq!(finish, "stop");
    let required = chat(json!({"tool_choice": "required"}));
    let tokens = [token(7, "[{\"name\":\"f\",", -1.0), token(8, "\"parameters\":{}}]", -1.0)];
    let (found, finish) = deltas(&required, ToolSyntax::Hermes, &tokens);
    assert_eq!(found[1]["tool_calls"][0]["function"]["arguments"], "{}");
    assert_eq!(finish, "tool_calls");
    let cut = [token(7, "[{\"name\":", -1.0)];
    let (found, _) = deltas(&required, ToolSyntax::Hermes, &cut);
    assert_eq!(found[1], json!({"content": "[{\"name\":"}));
}

#[test]
fn chat_tokens_have_their_bytes_and_rivals() {
    let request = chat(json!({"logprobs": true, "top_logprobs": 1, "tool_choice": "none"}));
    assert_eq!(request.fields.host["logprobs"], 1);
    let mut piece = token(7, "\u{fffd}", f32::NEG_INFINITY);
    piece.bytes = vec![0xc3];
    let whole = whole(vec![done(0, &[piece], FinishReason::Length)]);
    let answer = json!(chat_answer(&head(), &request.how, ToolSyntax::Hermes, &whole));
    let token = &answer["choices"][0]["logprobs"]["content"][0];
    assert_eq!(token["bytes"], json!([0xc3]));
    assert_eq!(token["logprob"], -9999.0);
    assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 1);
    assert_eq!(token["top_logprobs"][0]["token"], "x");
}

/// A JSON value of any kind, small.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|x| json!(x)),
        (-3..200_i64).prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        Just(json!("function")),
        Just(json!("user")),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let key = prop_oneof![
            Just("role".to_owned()),
            Just("content".to_owned()),
            Just("type".to_owned()),
            Just("text".to_owned()),
            Just("function".to_owned()),
            Just("name".to_owned()),
            Just("tool_calls".to_owned()),
            Just("arguments".to_owned()),
            ".{0,4}",
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// An object with some of these fields.
fn any_body(tables: &'static [&'static [Field]]) -> impl Strategy<Value = Map<String, Value>> {
    let names: Vec<&'static str> =
        tables.iter().flat_map(|table| table.iter().map(|field| field.name)).collect();
    prop::collection::vec((prop::sample::select(names), any_value()), 0..6)
        .prop_map(|pairs| pairs.into_iter().map(|(name, v)| (name.to_owned(), v)).collect())
}

/// A refusal names its field, and is no longer than a line of a log.
fn check_refusal(refused: Option<super::schema::Invalid>) {
    if let Some(invalid) = refused {
        assert!(invalid.message.starts_with(&invalid.field), "{invalid:?}");
        assert!(invalid.message.len() < 2000, "{invalid:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn no_body_is_too_strange_to_be_refused(
        completion in any_body(&[COMPLETION, SAMPLING]),
        chat in any_body(&[CHAT, SAMPLING]),
        lmi in any_body(&[REQUEST]),
        parameters in any_body(&[PARAMETERS]),
    ) {
        let mut good = completion.clone();
        good.insert("prompt".to_owned(), json!("a"));
        for body in [completion, good] {
            check_refusal(CompletionRequest::read(body).err());
        }
        let mut good = chat.clone();
        good.insert("messages".to_owned(), json!([{"role": "user", "content": "a"}]));
        for body in [chat, good] {
            check_refusal(ChatRequest::read(body, false).err());
        }
        for dialect in [Dialect::Rolling, Dialect::Tgi, Dialect::Async] {
            check_refusal(LmiRequest::read(lmi.clone(), dialect).err());
            let body = json!({"inputs": "a", "parameters": parameters.clone()});
            check_refusal(LmiRequest::read(object(body), dialect).err());
        }
    }

    #[test]
    fn whatever_a_model_says_is_told(pieces in prop::collection::vec(
        prop::sample::select(vec![
            "<tool_call>", "</tool_call>", "<tool", "_call>", "[TOOL_CALLS]", "[TOOL",
            "<|python_tag|>", "{\"name\": \"f\"}", "{\"name\"", ":", "[", "]", "{", "}", " ", "é", "x",
        ]),
        0..12,
    )) {
        use super::chat::tools::{Said, ToolReader};
        for syntax in [ToolSyntax::Hermes, ToolSyntax::Llama3, ToolSyntax::Mistral] {
            let mut reader = ToolReader::new(syntax);
            let mut said: Vec<Said> = pieces.iter().flat_map(|piece| reader.push(piece)).collect();
            said.extend(reader.finish());
            let whole = pieces.concat();
            let mut once = ToolReader::new(syntax);
            let mut at_once = once.push(&whole);
            at_once.extend(once.finish());
            let text = |said: &[Said]| said.iter().filter_map(|one| match one {
                Said::Text(text) => Some(text.as_str()),
                Said::Call(_) => None,
            }).collect::<String>();
            let n_calls = |said: &[Said]| said.iter().filter(|o| matches!(o, Said::Call(_))).count();
            prop_assert_eq!(text(&said), text(&at_once));
            prop_assert_eq!(n_calls(&said), n_calls(&at_once));
            if n_calls(&said) == 0 {
                prop_assert_eq!(text(&said), whole);
            }
        }
    }
}
