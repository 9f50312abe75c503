//! The model that comes with the binary, on words it was not trained on.

use drivetrain_host::Prompt;
use drivetrain_tests::model;
use serde_json::json;

use super::served::{Files, request};
use super::{Configuration, Served};

#[test]
fn four_beams_say_all_recorded_words_alone_and_together() {
    let dir = model("bart-g2p");
    let table = std::fs::read_to_string(dir.join("heldout_200.tsv")).unwrap();
    let words: Vec<(&str, &str)> = table
        .lines()
        .skip(1)
        .map(|line| {
            let columns: Vec<&str> = line.split('\t').collect();
            (columns[0], columns[3])
        })
        .collect();
    assert_eq!(words.len(), 200);
    let configuration =
        Configuration { n_places: 128, keeps_prefixes: true, ..Configuration::PLAIN };
    let served = Served::load(&Files::copy(&dir, None), configuration);
    let ask = |word: &str| request(Prompt::Text(word.to_owned()), json!({"num_beams": 4}));
    let mut wrong = Vec::new();
    let mut check = |how: &str, (word, want): (&str, &str), got: &str| {
        if got != want {
            wrong.push(format!("{word}, {how}: {got}, {want} wanted"));
        }
    };
    for word in &words {
        check("alone", *word, &served.ask(ask(word.0)).unwrap().completions[0].text);
    }
    for words in words.chunks(32) {
        let requests = words.iter().map(|(word, _)| ask(word)).collect();
        for (word, answer) in words.iter().zip(served.ask_together(requests)) {
            check("among others", *word, &answer.unwrap().completions[0].text);
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}
