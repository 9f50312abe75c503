//! Text as it comes: order, ends, and who waits for whom.

use super::*;
use crate::fake::Failure;
use crate::{Event, GenerateRequest, Prompt};

fn asked(prompts: &[&str], parameters: Value) -> GenerateRequest {
    GenerateRequest {
        id: "r".to_owned(),
        prompts: prompts.iter().map(|text| Prompt::Text((*text).to_owned())).collect(),
        parameters: parameters.as_object().cloned().unwrap_or_default(),
        is_streamed: true,
        ..GenerateRequest::default()
    }
}

#[tokio::test]
async fn tokens_come_in_order_and_then_the_whole() {
    let served = serve(ModelKind::Decoder, "");
    let request = asked(&["t3 t4", "t9 t9"], json!({"max_new_tokens": 12}));
    let mut generation = served.model.generate(request).await.unwrap();
    let prompts: Vec<_> = generation.prompts().iter().map(|p| p.ids.clone()).collect();
    assert_eq!(prompts, [[3, 4], [9, 9]]);
    let mut ids = [Vec::new(), Vec::new()];
    let mut texts = [String::new(), String::new()];
    let mut n_done = 0;
    while let Some(event) = generation.next().await {
        match event.unwrap() {
            Event::Token { prompt, choice: 0, token, text } => {
                ids[prompt].push(token.id);
                texts[prompt].push_str(&text);
                assert_eq!((token.is_special, token.logprob), (token.id == 0, None));
            }
            Event::Done { text, completion } => {
                n_done += 1;
                texts[completion.prompt].push_str(&text);
                assert_eq!(completion.ids, ids[completion.prompt]);
                assert_eq!(completion.text, texts[completion.prompt]);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(n_done, 2);
    for (idx, prompt) in [[3, 4], [9, 9]].iter().enumerate() {
        let expect = continuation(&[], prompt, 12);
        assert_eq!((&ids[idx], texts[idx].as_str()), (&expect, words(&expect).as_str()));
    }
    assert!(generation.next().await.is_none(), "the end stays the end");
    drop(generation);
    served.host.drained().await;
}

#[tokio::test]
async fn all_answers_at_once_are_in_order() {
    let served = serve(ModelKind::EncoderDecoder, "");
    let request = asked(&["t3 t4", "t5"], json!({"max_length": 12}));
    let completions = served.model.generate(request).await.unwrap().finish().await.unwrap();
    for (completion, input) in completions.iter().zip([&[3, 4][..], &[5]]) {
        assert_eq!(completion.ids, continuation(input, &[2], 11));
        assert_eq!((completion.text.clone(), completion.choice), (words(&completion.ids), 0));
        assert_eq!((completion.n_prompt_tokens, &completion.full_text), (input.len(), &None));
    }
}

#[tokio::test]
async fn an_error_is_the_last_event() {
    let served = serve(ModelKind::Decoder, "");
    served.engine.book.lock().unwrap().fails_at = Some((2, Failure::DeviceLost));
    let request = asked(&["t3 t4"], json!({"max_new_tokens": 20, "min_new_tokens": 20}));
    let mut generation = served.model.generate(request).await.unwrap();
    let mut n_tokens = 0;
    let error = loop {
        match generation.next().await.unwrap() {
            Ok(Event::Token { .. }) => n_tokens += 1,
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert_eq!(n_tokens, 2);
    assert!(matches!(error, HostError::Failed { .. }), "{error:?}");
    assert!(generation.next().await.is_none());
}

#[tokio::test]
async fn a_late_answer_is_an_error_and_a_dropped_one_is_cancelled() {
    let served = serve(ModelKind::Decoder, "");
    served.engine.book.lock().unwrap().fails_at = Some((1, Failure::Sleeps(30)));
    let tokens = json!({"max_new_tokens": 60, "min_new_tokens": 60});
    let mut request = asked(&["t3"], tokens.clone());
    request.deadline = Some(Instant::now() + Duration::from_millis(60));
    let error = served.model.generate(request).await.unwrap().finish().await.unwrap_err();
    assert!(matches!(error, HostError::Timeout { .. }), "{error:?}");
    let mut generation = served.model.generate(asked(&["t3"], tokens)).await.unwrap();
    assert!(generation.next().await.unwrap().is_ok());
    assert_eq!(served.host.n_requests(), 1);
    drop(generation);
    served.host.drained().await;
    while served.engine.book.lock().unwrap().n_released < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(served.engine.book.lock().unwrap().n_forwards < 60, "the work ended early");
}
