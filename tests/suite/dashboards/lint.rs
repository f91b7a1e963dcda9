//! What holds for every dashboard, each rule by itself. They are those of grafana/dashboard-linter
//! that make sense here, and some of our own.

use std::collections::BTreeSet;

use serde_json::Value;

use super::board::{Board, Boards, is_prose, links, list, references, text, texts};
use super::promql;

/// Looks at a whole dashboard, or at each of its panels; says what is wrong.
#[derive(Clone, Copy)]
enum Check {
    Board(fn(&Board, &Boards) -> Vec<String>),
    Panel(fn(&Value, &Board, &Boards) -> Vec<String>),
}

/// The rules by name.
const RULES: &[(&str, Check)] = &[
    ("uid", Check::Board(uid)),
    ("words", Check::Board(words)),
    ("settings", Check::Board(settings)),
    ("times", Check::Board(times)),
    ("variables", Check::Board(variables)),
    ("variable queries", Check::Board(promql::variable_queries)),
    ("titles", Check::Board(titles)),
    ("panel ids", Check::Board(panel_ids)),
    ("grid", Check::Board(grid)),
    ("panel words", Check::Panel(panel_words)),
    ("unit", Check::Panel(unit)),
    ("no value", Check::Panel(no_value)),
    ("thresholds", Check::Panel(thresholds)),
    ("datasource", Check::Panel(datasource)),
    ("targets", Check::Panel(targets)),
    ("columns", Check::Panel(columns)),
    ("links", Check::Panel(panel_links)),
    ("expressions", Check::Panel(promql::expressions)),
    ("job", Check::Panel(promql::job)),
    ("windows", Check::Panel(promql::windows)),
    ("legend", Check::Panel(promql::legend)),
    ("labels of links", Check::Panel(promql::labels_of_links)),
];

/// What is wrong, by the rule that says so.
pub(super) fn lint(board: &Board, boards: &Boards) -> Vec<(&'static str, String)> {
    let mut faults = Vec::new();
    for (rule, check) in RULES {
        let mut found = |place: &str, problems: Vec<String>| {
            let problems = problems.into_iter();
            faults.extend(problems.map(|it| (*rule, format!("{}: {place}{it}", board.file))));
        };
        match check {
            Check::Board(check) => found("", check(board, boards)),
            Check::Panel(check) => {
                for panel in board.panels() {
                    let place = format!("panel {:?}: ", text(panel, "title"));
                    found(&place, check(panel, board, boards));
                }
            }
        }
    }
    faults
}

/// The names of all rules.
pub(super) fn rules() -> BTreeSet<&'static str> {
    RULES.iter().map(|(name, _)| *name).collect()
}

/// A problem, if there is one.
fn only_if(is_wrong: bool, problem: impl Into<String>) -> Vec<String> {
    is_wrong.then(|| problem.into()).into_iter().collect()
}

/// What stands there twice.
fn doubled<T: Ord>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = BTreeSet::new();
    let mut doubled = Vec::new();
    for one in all {
        if let Some(one) = seen.replace(one) {
            doubled.push(one);
        }
    }
    doubled
}

fn uid(board: &Board, _: &Boards) -> Vec<String> {
    let wanted = format!("taffrail-{}", board.file.trim_end_matches(".json"));
    only_if(board.uid() != wanted, format!("the uid is not {wanted}"))
}

fn words(board: &Board, _: &Boards) -> Vec<String> {
    let is_named = text(&board.json, "title").starts_with("Taffrail / ");
    let mut problems = only_if(!is_named, "the title does not begin with \"Taffrail / \"");
    problems.extend(only_if(
        text(&board.json, "description").is_empty(),
        "no description",
    ));
    problems
}

/// What a provisioned dashboard must say, and what belongs to one Grafana alone.
fn settings(board: &Board, _: &Boards) -> Vec<String> {
    let json = &board.json;
    let mut problems = only_if(json["editable"] != false, "editable is not false");
    for key in ["id", "version", "iteration", "gnetId"] {
        problems.extend(only_if(!json[key].is_null(), format!("it has {key}")));
    }
    let is_tagged = list(json, "tags").iter().any(|tag| tag == "taffrail");
    problems.extend(only_if(!is_tagged, "no tag taffrail"));
    let is_linked = list(json, "links")
        .iter()
        .any(|it| it["type"] == "dashboards" && it["tags"][0] == "taffrail");
    problems.extend(only_if(!is_linked, "no menu of the other dashboards"));
    problems
}

fn times(board: &Board, _: &Boards) -> Vec<String> {
    let mut problems = Vec::new();
    for end in ["from", "to"] {
        let time = text(&board.json["time"], end);
        problems.extend(only_if(
            !time.starts_with("now"),
            format!("time.{end} is not relative"),
        ));
    }
    let refresh = &board.json["refresh"];
    let is_known = ["", "1m", "5m", "15m", "1h"].iter().any(|it| refresh == it);
    problems.extend(only_if(!is_known, format!("it refreshes every {refresh}")));
    problems
}

/// What Grafana itself puts in.
const OF_GRAFANA: &[&str] = &[
    "__all",
    "__data",
    "__field",
    "__interval",
    "__range",
    "__rate_interval",
    "__timeFilter",
    "__timeFrom",
    "__timeTo",
    "__url_time_range",
    "__value",
];

fn variables(board: &Board, _: &Boards) -> Vec<String> {
    let all = texts(&board.json);
    let names = all.iter().flat_map(|text| references(text));
    let names: BTreeSet<&str> = names.map(|reference| reference.name).collect();
    let is_known = |name: &&str| OF_GRAFANA.contains(name) || board.variable(name).is_some();
    let unknown = names.iter().filter(|name| !is_known(name));
    unknown
        .map(|name| format!("there is no variable {name}"))
        .collect()
}

fn titles(board: &Board, _: &Boards) -> Vec<String> {
    // A row may be named as its most important panel is.
    let panels = board.panels().into_iter();
    let titles = panels.map(|panel| (panel["type"] == "row", text(panel, "title")));
    let doubled = doubled(titles).into_iter();
    doubled
        .map(|(_, title)| format!("{title:?} is the title of two panels"))
        .collect()
}

fn panel_ids(board: &Board, _: &Boards) -> Vec<String> {
    let panels = board.panels().into_iter();
    let ids = panels.map(|panel| panel["id"].as_u64().unwrap_or_default());
    let doubled = doubled(ids).into_iter();
    doubled
        .map(|id| format!("two panels have the id {id}"))
        .collect()
}

fn grid(board: &Board, _: &Boards) -> Vec<String> {
    let mut taken = BTreeSet::new();
    let mut problems = Vec::new();
    for panel in list(&board.json, "panels") {
        let [x, y, width, height] =
            ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap_or_default());
        let title = text(panel, "title");
        if width == 0 || height == 0 || x + width > 24 {
            problems.push(format!("panel {title:?} is not within 24 columns"));
        }
        let cells = (y..y + height).flat_map(|row| (x..x + width).map(move |column| (column, row)));
        let free = cells.map(|cell| taken.insert(cell));
        if free.filter(|is_free| !is_free).count() > 0 {
            problems.push(format!("panel {title:?} lies on another"));
        }
    }
    problems
}

fn panel_words(panel: &Value, _: &Board, _: &Boards) -> Vec<String> {
    let mut problems = only_if(text(panel, "title").is_empty(), "no title");
    let is_mute = !is_prose(panel) && text(panel, "description").is_empty();
    problems.extend(only_if(is_mute, "no description"));
    problems
}

fn unit(panel: &Value, _: &Board, _: &Boards) -> Vec<String> {
    let unit = text(&panel["fieldConfig"]["defaults"], "unit");
    only_if(!is_prose(panel) && unit.is_empty(), "no unit")
}

fn no_value(panel: &Value, _: &Board, _: &Boards) -> Vec<String> {
    let said = text(&panel["fieldConfig"]["defaults"], "noValue");
    let is_mute = !is_prose(panel) && said.is_empty();
    only_if(is_mute, "it does not say what no value means")
}

fn thresholds(panel: &Value, _: &Board, _: &Boards) -> Vec<String> {
    let fields = &panel["fieldConfig"];
    let overrides = list(fields, "overrides").iter();
    let of_overrides = overrides
        .flat_map(|it| list(it, "properties"))
        .filter(|property| property["id"] == "thresholds")
        .map(|property| &property["value"]);
    let mut problems = Vec::new();
    for thresholds in [&fields["defaults"]["thresholds"]]
        .into_iter()
        .chain(of_overrides)
    {
        let steps = list(thresholds, "steps").iter();
        let values: Vec<f64> = steps
            .map(|step| step["value"].as_f64().unwrap_or(f64::NEG_INFINITY))
            .collect();
        let is_based = values.first().is_none_or(|first| first.is_infinite());
        let is_ascending = values.is_sorted_by(|one, next| one < next);
        problems.extend(only_if(
            !is_based || !is_ascending,
            format!("thresholds {values:?} do not ascend from null"),
        ));
    }
    problems
}

/// Datasources are chosen by variables of the same type.
fn datasource(panel: &Value, board: &Board, _: &Boards) -> Vec<String> {
    if is_prose(panel) {
        return Vec::new();
    }
    let targets = list(panel, "targets").iter().map(|it| &it["datasource"]);
    let all = [&panel["datasource"]].into_iter().chain(targets);
    let mut problems = Vec::new();
    for source in all {
        let (kind, uid) = (text(source, "type"), text(source, "uid"));
        let name = references(uid).first().map_or("", |it| it.name);
        let variable = board.variable(name).unwrap_or(&Value::Null);
        let is_of_kind = variable["type"] == "datasource" && variable["query"] == kind;
        problems.extend(only_if(
            !is_of_kind,
            format!("its datasource {uid:?} is no variable of {kind:?}"),
        ));
    }
    problems
}

fn targets(panel: &Value, _: &Board, _: &Boards) -> Vec<String> {
    let targets = list(panel, "targets");
    let mut problems = only_if(!is_prose(panel) && targets.is_empty(), "it asks nothing");
    for id in doubled(targets.iter().map(|it| text(it, "refId"))) {
        problems.push(format!("two queries are {id:?}"));
    }
    for target in targets {
        let is_asked = !text(target, "expr").is_empty() || !text(target, "rawSql").is_empty();
        problems.extend(only_if(!is_asked, "an empty query"));
        let is_row = panel["type"] == "table" && !text(target, "expr").is_empty();
        let is_instant = target["instant"] == true && target["format"] == "table";
        problems.extend(only_if(
            is_row && !is_instant,
            "a table of a range of times",
        ));
    }
    problems
}

/// What Prometheus and the merging of its tables give columns their names.
fn columns(panel: &Value, _: &Board, _: &Boards) -> Vec<String> {
    let targets = list(panel, "targets");
    if panel["type"] != "table" || targets.iter().any(|it| it["expr"].is_null()) {
        return Vec::new();
    }
    let mut before: BTreeSet<String> = ["Time".to_owned(), "Value".to_owned()].into();
    for target in targets {
        before.insert(format!("Value #{}", text(target, "refId")));
        before.extend(promql::labels(target));
    }
    let transformations = list(panel, "transformations").iter();
    let organize = transformations.filter(|it| it["id"] == "organize");
    let mut after = before.clone();
    let mut problems = Vec::new();
    for options in organize.map(|it| &it["options"]) {
        for key in ["renameByName", "excludeByName", "indexByName"] {
            let names = options[key].as_object().into_iter().flatten();
            for (name, _) in names.filter(|(name, _)| !before.contains(*name)) {
                problems.push(format!("{key} names a column {name:?} that is not there"));
            }
        }
        let new = options["renameByName"].as_object().into_iter().flatten();
        for (old, new) in new {
            after.remove(old);
            after.extend(new.as_str().map(str::to_owned));
        }
    }
    for matcher in list(&panel["fieldConfig"], "overrides")
        .iter()
        .map(|it| &it["matcher"])
        .filter(|it| it["id"] == "byName")
    {
        let name = text(matcher, "options");
        problems.extend(only_if(
            !after.contains(name),
            format!("an override names a column {name:?} that is not there"),
        ));
    }
    problems
}

fn panel_links(panel: &Value, board: &Board, boards: &Boards) -> Vec<String> {
    let urls = links(panel).into_iter();
    urls.flat_map(|url| link(url, Some(board), boards))
        .collect()
}

/// What is wrong with a link to one of the dashboards; from one of them it may bring its variables
/// along.
pub(super) fn link(url: &str, from: Option<&Board>, boards: &Boards) -> Vec<String> {
    let Some((_, rest)) = url.split_once("/d/") else {
        return vec![format!("{url:?} leads to no dashboard")];
    };
    let (uid, query) = rest.split_once('?').unwrap_or((rest, ""));
    let Some(target) = boards.get(uid) else {
        return vec![format!("{url:?} leads to no dashboard")];
    };
    let mut problems = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let brought = references(pair);
        let brought = brought.iter().find(|it| it.format == "queryparam");
        let name = pair.split_once('=').map_or(pair, |(name, _)| name);
        let name = match (brought, name.strip_prefix("var-")) {
            (Some(brought), _) => brought.name,
            (None, Some(name)) => name,
            (None, None) => {
                let shown = pair
                    .strip_prefix("viewPanel=")
                    .and_then(|id| target.panel(id));
                problems.extend(only_if(
                    pair != "${__url_time_range}" && shown.is_none(),
                    format!("{url:?} has {pair:?}"),
                ));
                continue;
            }
        };
        let is_there = target.variable(name).is_some();
        let is_here = brought.is_none() || from.is_some_and(|it| it.variable(name).is_some());
        problems.extend(only_if(
            !is_there || !is_here,
            format!("{url:?} names a variable {name:?} that is not there"),
        ));
    }
    problems
}
