//! Routes: the first segment of a path names the provider, the rest goes to its upstream
//! unchanged. Upstreams come from configuration only; nothing in a request can choose a host.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::provider::Provider;
use crate::proxy::upstream::Upstream;

/// A provider and where its traffic goes.
pub struct Route {
    /// The provider's name: route and configuration key alike.
    pub name: Arc<str>,
    /// What records and metrics call the vendor.
    pub label: Arc<str>,
    /// What its API means.
    pub provider: Arc<dyn Provider>,
    /// Where its traffic goes.
    pub upstream: Upstream,
    /// Whether `stream_options.include_usage` may be added for it.
    pub usage_injection: bool,
}

/// All routes.
#[derive(Default)]
pub struct Routes(BTreeMap<Arc<str>, Arc<Route>>);

impl Routes {
    /// A table of these routes.
    pub fn new(routes: impl IntoIterator<Item = Route>) -> Routes {
        Routes(
            routes
                .into_iter()
                .map(|route| (route.name.clone(), Arc::new(route)))
                .collect(),
        )
    }

    /// The route of a path, and the path at the upstream.
    pub fn find<'a>(&self, path: &'a str) -> Option<(&Arc<Route>, &'a str)> {
        let path = path.strip_prefix('/')?;
        let (name, rest) = match path.find('/') {
            Some(slash) => path.split_at(slash),
            None => (path, "/"),
        };
        self.0.get(name).map(|route| (route, rest))
    }

    /// The route of that name.
    pub fn named(&self, name: &str) -> Option<&Arc<Route>> {
        self.0.get(name)
    }

    /// The names, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.keys()
    }

    /// The routes, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.0.values()
    }
}
