//! An admission review in, its answer out. Pure.
//!
//! Source: Kubernetes, "Dynamic Admission Control", webhook request and response;
//! `admission.k8s.io/v1`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::patch::{self, Plan};
use super::sidecar::Sidecar;
use crate::metrics::ReviewResult;

/// The longest warning that reaches a person uncut.
///
/// Source: Kubernetes, "Dynamic Admission Control", response: 120 characters are advised; all
/// together are cut at 4096.
const WARNINGS_BYTES_MAX: usize = 4096;

/// An answer, and what became of the pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The review with its response.
    pub body: Value,
    /// What became of the pod.
    pub result: ReviewResult,
    /// How many warnings it has.
    pub warnings: usize,
}

/// What is no admission review.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an AdmissionReview of admission.k8s.io/v1 with a request and its uid")]
pub struct Malformed;

#[derive(Deserialize)]
struct Review<'a> {
    #[serde(rename = "apiVersion")]
    api_version: &'a str,
    kind: &'a str,
    request: Request,
}

#[derive(Deserialize)]
struct Request {
    uid: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    object: Value,
}

/// Answers a review. `own_namespace` is where the injector runs.
///
/// # Errors
/// When it is none; then there is nothing that an answer could name.
pub fn answer(body: &[u8], sidecar: &Sidecar, own_namespace: &str) -> Result<Answer, Malformed> {
    let review: Review<'_> = serde_json::from_slice(body).map_err(|_| Malformed)?;
    let is_review = review.api_version == "admission.k8s.io/v1" && review.kind == "AdmissionReview";
    if !is_review || review.request.uid.is_empty() {
        return Err(Malformed);
    }
    let request = review.request;
    let is_pod = request.object.get("kind") == Some(&json!("Pod"))
        && request.object.get("spec").is_some_and(Value::is_object)
        && request.object.get("metadata").is_some_and(Value::is_object);
    let plan = if is_pod && request.operation == "CREATE" {
        patch::plan(&request.object, &request.namespace, own_namespace, sidecar)
    } else {
        Plan {
            result: ReviewResult::Malformed,
            operations: Vec::new(),
            warnings: vec![
                "the taffrail webhook was asked about something else than a pod's creation"
                    .to_owned(),
            ],
        }
    };
    let warnings = bounded(plan.warnings);
    let count = warnings.len();
    let mut response = Map::new();
    response.insert("uid".to_owned(), json!(request.uid));
    response.insert("allowed".to_owned(), json!(true));
    if !plan.operations.is_empty() {
        let patch = Value::Array(plan.operations).to_string();
        response.insert("patchType".to_owned(), json!("JSONPatch"));
        response.insert("patch".to_owned(), json!(STANDARD.encode(patch)));
    }
    if count > 0 {
        response.insert("warnings".to_owned(), json!(warnings));
    }
    Ok(Answer {
        body: json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "response": response,
        }),
        result: plan.result,
        warnings: count,
    })
}

/// Warnings that reach a person: no control characters, not more than the API server passes on.
fn bounded(warnings: Vec<String>) -> Vec<String> {
    let mut left = WARNINGS_BYTES_MAX;
    let mut kept = Vec::new();
    for warning in warnings {
        let warning: String = warning.chars().filter(|c| !c.is_control()).collect();
        let Some(rest) = left.checked_sub(warning.len()) else {
            break;
        };
        left = rest;
        kept.push(warning);
    }
    kept
}
