//! Dashboards against the JSON Schema of Grafana's own types; `tests/fixtures/grafana` says how it
//! was made.

use serde_json::{Map, Value, json};

use super::{board, sound};
use crate::support::chart::{root, tools};

fn problems(documents: &Value) -> Option<Vec<String>> {
    let schema = root().join("tests/fixtures/grafana/dashboard.schema.json");
    Some(tools()?.conform(&schema, documents))
}

#[test]
fn every_dashboard_has_the_form_of_grafanas_types() {
    let boards = board::all().into_values();
    let mut documents: Map<String, Value> = boards.map(|board| (board.file, board.json)).collect();
    documents.insert("sound.json".to_owned(), sound());
    let Some(problems) = problems(&Value::Object(documents)) else {
        return;
    };
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn what_is_not_in_grafanas_types_is_found() {
    let cases = [
        ("/time/from", json!(7), "7 is not of type 'string'"),
        ("/surprise", json!(true), "'surprise' was unexpected"),
        (
            "/panels/1/gridPos/x",
            json!("left"),
            "'left' is not of type 'number'",
        ),
        (
            "/templating/list/1/type",
            json!("list"),
            "'list' is not one of",
        ),
    ];
    let mut documents = json!({});
    for (pointer, value, _) in &cases {
        let mut json = sound();
        let (place, key) = pointer.rsplit_once('/').unwrap();
        json.pointer_mut(place).unwrap()[key] = value.clone();
        documents[pointer] = json;
    }
    let Some(problems) = problems(&documents) else {
        return;
    };
    for (pointer, _, words) in cases {
        let is_found = |it: &String| it.starts_with(pointer) && it.contains(words);
        assert!(problems.iter().any(is_found), "{pointer}: {problems:?}");
    }
}
