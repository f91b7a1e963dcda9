//! The SDKs for Node, unmodified.

use super::*;

/// The packages that `scripts/test-setup.sh` has installed.
const MODULES: &str = "target/sdk-node/node_modules";

/// The interpreter, if the SDKs are there.
fn node() -> Option<PathBuf> {
    interpreter("node", "target/sdk-node/stamp")
}

/// Runs a script with these variables; returns what it reported, by call.
async fn run_node(
    node: &Path,
    script: &str,
    base: &str,
    env: &[(&str, &str)],
) -> BTreeMap<String, Value> {
    let modules = root().join(MODULES);
    let mut all = vec![("NODE_PATH", modules.to_str().unwrap())];
    all.extend(env);
    run_with(node, script, base, "x-taffrail-feature", &all).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_are_what_the_sdks_for_node_were_told() {
    let Some(node) = node() else { return };
    let mut config = "[attribution]\nstatic = { team = \"search\" }\n\
                      headers = { feature = \"x-taffrail-feature\" }\n"
        .to_owned();
    let mut lookalikes = Vec::new();
    for vendor in [Likeness::OpenAi, Likeness::Anthropic] {
        let lookalike = LookAlike::start(vendor).await.unwrap();
        for (route, upstream) in lookalike.upstreams() {
            config += &format!("[providers.{route}]\nupstream = \"{upstream}\"\n");
        }
        lookalikes.push(lookalike);
    }
    let home = home(&config);
    let server = home.start().await;
    let base = format!("http://{}", server.proxy);
    let calls = run_node(&node, "texts.cjs", &base, &[]).await;
    let rows = rows_of(&home, &server, calls.len()).await;
    let of_feature = by_feature(&rows);
    assert_eq!(of_feature.len(), 6);
    for (call, facts) in &calls {
        check_call(call, facts, &of_feature[call.as_str()], &calls);
    }
    assert_counters_agree(&server.scrape().await.0, &rows, &["team", "feature"]);
    finish(&home, server, &rows).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_and_streams_of_the_clients_for_node_make_one_row_each() {
    let Some(node) = node() else { return };
    let stream = Vendor::start(|asked| {
        assert!(asked.target.starts_with("/v1/files/"), "{}", asked.target);
        reply_of("replicate-stream", "stream")
    });
    let vendors = [
        ("fal", fal_run().await),
        ("fal-queue", fal_queue().await),
        ("replicate", replicate().await),
        ("replicate-stream", stream.await),
    ];
    let mut config = String::new();
    for (name, vendor) in &vendors {
        config += &format!("[providers.{name}]\nupstream = \"{}\"\n", vendor.url());
    }
    let home = home(&config);
    let server = home.start().await;
    let base = format!("http://{}", server.proxy);
    let key = format!("an-id:{}", SECRETS[5]);
    let env = [
        ("FAL_KEY", key.as_str()),
        ("REPLICATE_API_TOKEN", SECRETS[6]),
    ];
    let calls = run_node(&node, "images.cjs", &base, &env).await;

    let images = json!(["https://v3.fal.media/files/a/b0.jpg"]);
    for call in ["fal-run", "fal-submit", "fal-subscribe"] {
        assert_eq!(calls[call]["images"], images, "{call}: {}", calls[call]);
    }
    let updates = json!(["COMPLETED", "IN_PROGRESS", "IN_QUEUE"]);
    assert_eq!(calls["fal-subscribe"]["updates"], updates);
    let refused = &calls["fal-refused"];
    assert_eq!(refused["status"], 403, "{refused}");
    assert_eq!(calls["replicate-run"]["output"], "Hello");
    let output = json!(["https://replicate.delivery/x/out-0.webp"]);
    assert_eq!(calls["replicate-run-polled"]["output"], output);
    let streamed = json!({ "output": "Once upon a time\nthere was", "tokens": 149 });
    assert_eq!(calls["replicate-stream"], streamed);

    let rows = rows_of(&home, &server, 7).await;
    let mut seen: Vec<Value> = rows
        .iter()
        .map(|row| json!(["model_requested", "outcome", "cost_usd"].map(|key| row[key].clone())))
        .collect();
    seen.sort_by_key(Value::to_string);
    let expected = [
        json!(["black-forest-labs/flux-schnell", "ok", "0.003"]),
        json!(["fal-ai/flux/dev", "ok", "0.025"]),
        json!(["fal-ai/flux/dev", "ok", "0.025"]),
        json!(["fal-ai/flux/dev", "ok", "0.025"]),
        json!(["fal-ai/locked", "account_locked", null]),
        json!(["meta/meta-llama-3-8b-instruct", "ok", "0.0000392"]),
        json!(["meta/meta-llama-3-8b-instruct", "ok", "0.0000392"]),
    ];
    assert_eq!(seen, expected);
    // The URLs in the answers name the vendors' own hosts, and nothing went there.
    let asked = vendors.each_ref().map(|(_, vendor)| vendor.asked().len());
    assert_eq!(asked[0], 2);
    assert_eq!(asked[2], 1 + 3 + 2);
    assert_eq!(asked[3], 1);
    finish(&home, server, &rows).await;
}
