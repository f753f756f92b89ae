//! The watch of one kind: lists, events and errors → changes.

use std::{
    collections::BTreeMap,
    fmt,
    hash::{BuildHasher, RandomState},
    pin::pin,
    time::Duration,
};

use futures_util::StreamExt;
use kube::{
    Api, Resource,
    core::Status,
    runtime::watcher::{self, Event, InitialListStrategy, watcher},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::{backoff::Backoff, client::Client, watched::Watched};
use crate::{
    model::{Change, Kind, Object, Problem},
    source::{Gone, Sender, origin, send},
};

/// How long a streaming list may pause before a paged list is asked for instead. A server that does not know streaming
/// lists and ignores the request for one never says that the list is complete.
const STREAMING_PAUSE: Duration = Duration::from_secs(10);
/// How long a page may take.
const PAGE_PAUSE: Duration = Duration::from_secs(120);
/// How long until an API server that does not know an optional kind is asked again: it has to be upgraded first.
const UNKNOWN_PAUSE: Duration = Duration::from_secs(300);

/// What is known of one kind while it is watched.
pub(super) struct Follower<'a, K> {
    kind: Kind,
    convert: fn(&K) -> (Option<Object>, Vec<Problem>),
    changes: &'a Sender,
    /// The list that is being received.
    listing: Option<Listing>,
    /// Objects with problems, by origin.
    problems: BTreeMap<String, Vec<Problem>>,
    /// What was said of the watch itself.
    refused: Option<Problem>,
    /// Whether a kind that cannot be listed counts as one without objects.
    optional: bool,
    /// Whether a list has been told, or that there is none.
    listed: bool,
}

#[derive(Default)]
struct Listing {
    objects: Vec<Object>,
    problems: BTreeMap<String, Vec<Problem>>,
}

/// What became of an object.
enum Converted {
    /// It is served, as far as it can be.
    Object(Box<Object>),
    /// There is nothing in it to serve.
    Nothing,
    /// It cannot be read.
    Unreadable,
}

/// What to do after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Wait and let the watcher go on from where it was.
    Resume,
    /// Wait and begin with a new list.
    Relist,
    /// Begin with a new list, in pages.
    Page,
    /// Wait for a long time, and begin with a new list: the API server does not know the kind.
    Unknown,
}

/// Watches one kind until the receiver is gone.
pub(super) async fn follow<K>(client: &Client, mut follower: Follower<'_, K>, selectors: watcher::Config)
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + fmt::Debug + Send + 'static,
{
    let api: Api<Watched<K>> = Api::all(client.api());
    let mut config = selectors.streaming_lists();
    let mut backoff = Backoff::default();
    loop {
        let mut stream = pin!(watcher(api.clone(), config.clone()));
        loop {
            let streaming = config.initial_list_strategy == InitialListStrategy::StreamingList;
            let event = match (&follower.listing, streaming) {
                (None, _) => Ok(stream.next().await),
                (Some(_), true) => timeout(STREAMING_PAUSE, stream.next()).await,
                (Some(_), false) => timeout(PAGE_PAUSE, stream.next()).await,
            };
            let next = match event {
                Ok(Some(Ok(event))) => {
                    if !matches!(event, Event::Init) {
                        backoff.reset();
                    }
                    match follower.take(event).await {
                        Ok(()) => continue,
                        Err(Gone) => return,
                    }
                }
                Ok(Some(Err(error))) => match follower.fail(&error, streaming).await {
                    Ok(next) => next,
                    Err(Gone) => return,
                },
                Err(_elapsed) if streaming => Next::Page,
                Ok(None) | Err(_) => Next::Relist,
            };
            if next == Next::Page {
                info!(kind = %follower.kind, "the API server has no streaming lists; listing in pages");
                config.initial_list_strategy = InitialListStrategy::ListWatch;
                follower.listing = None;
                break;
            }
            if next == Next::Unknown {
                follower.listing = None;
                sleep(UNKNOWN_PAUSE).await;
                break;
            }
            sleep(backoff.after_failure(Instant::now(), RandomState::new().hash_one(()))).await;
            if next == Next::Relist {
                follower.listing = None;
                break;
            }
        }
    }
}

impl<'a, K: Resource<DynamicType = ()>> Follower<'a, K> {
    pub(super) fn new(
        kind: Kind,
        convert: fn(&K) -> (Option<Object>, Vec<Problem>),
        changes: &'a Sender,
    ) -> Self {
        Self {
            kind,
            convert,
            changes,
            listing: None,
            problems: BTreeMap::new(),
            refused: None,
            optional: false,
            listed: false,
        }
    }

    /// For a kind that not every API server knows, and that can be done without: it never keeps the other lists waiting.
    pub(super) fn optional(
        kind: Kind,
        convert: fn(&K) -> (Option<Object>, Vec<Problem>),
        changes: &'a Sender,
    ) -> Self {
        Self { optional: true, ..Self::new(kind, convert, changes) }
    }

    async fn take(&mut self, event: Event<Watched<K>>) -> Result<(), Gone> {
        match event {
            Event::Init => self.listing = Some(Listing::default()),
            Event::InitApply(object) => self.list(object),
            Event::InitDone => self.end_list().await?,
            Event::Apply(object) => self.apply(object).await?,
            Event::Delete(object) => {
                send(self.changes, Change::Delete(self.kind, object.name())).await?;
                self.report(origin(self.kind, &object.name()), Vec::new()).await?;
            }
        }
        self.allow().await
    }

    fn list(&mut self, object: Watched<K>) {
        let origin = origin(self.kind, &object.name());
        let (object, problems) = self.convert(object);
        let listing = self.listing.get_or_insert_default();
        if let Converted::Object(object) = object {
            listing.objects.push(*object);
        }
        if !problems.is_empty() {
            listing.problems.insert(origin, problems);
        }
    }

    async fn end_list(&mut self) -> Result<(), Gone> {
        let Listing { objects, problems } = self.listing.take().unwrap_or_default();
        debug!(kind = %self.kind, objects = objects.len(), "listed");
        send(self.changes, Change::Reset(self.kind, objects)).await?;
        self.listed = true;
        let solved: Vec<_> =
            self.problems.keys().filter(|origin| !problems.contains_key(*origin)).cloned().collect();
        for origin in solved {
            self.report(origin, Vec::new()).await?;
        }
        for (origin, problems) in problems {
            self.report(origin, problems).await?;
        }
        Ok(())
    }

    async fn apply(&mut self, object: Watched<K>) -> Result<(), Gone> {
        let name = object.name();
        let (object, problems) = self.convert(object);
        match object {
            Converted::Object(object) => send(self.changes, Change::Apply(*object)).await?,
            // It was served before, perhaps: its label is gone, for instance.
            Converted::Nothing => send(self.changes, Change::Delete(self.kind, name.clone())).await?,
            // What it was before stays.
            Converted::Unreadable => {}
        }
        self.report(origin(self.kind, &name), problems).await
    }

    fn convert(&self, mut watched: Watched<K>) -> (Converted, Vec<Problem>) {
        let Some(object) = watched.decoded.object.take() else {
            return (Converted::Unreadable, watched.decoded.problems);
        };
        let (object, problems) = (self.convert)(&object);
        let converted = object.map_or(Converted::Nothing, |object| Converted::Object(object.into()));
        (converted, watched.decoded.problems_with(problems))
    }

    /// Says what is wrong with an object, if that is news.
    async fn report(&mut self, origin: String, problems: Vec<Problem>) -> Result<(), Gone> {
        let known = self.problems.get(&origin).map(Vec::as_slice).unwrap_or_default();
        if known == problems {
            return Ok(());
        }
        if problems.is_empty() {
            self.problems.remove(&origin);
        } else {
            self.problems.insert(origin.clone(), problems.clone());
        }
        send(self.changes, Change::Problems { origin, problems }).await
    }

    /// What an error means. Whether the server answers at all is seen in its client, not here.
    async fn fail(&mut self, error: &watcher::Error, streaming: bool) -> Result<Next, Gone> {
        debug!(kind = %self.kind, %error, "watch failed");
        let (watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status)) = error
        else {
            return Ok(if self.listing.is_some() { Next::Relist } else { Next::Resume });
        };
        let starting = matches!(error, watcher::Error::WatchStartFailed(_));
        match status.code {
            400 | 415 | 422 if starting && streaming => Ok(Next::Page),
            404 if self.optional => {
                debug!(kind = %self.kind, "not known to the API server");
                // None is left of what an API server knew that has been set back to an older version.
                self.end_list_without_any().await?;
                Ok(Next::Unknown)
            }
            401 | 403 | 404 => {
                if self.optional && !self.listed && status.code == 403 {
                    self.end_list_without_any().await?;
                }
                let is_list = matches!(error, watcher::Error::InitialListFailed(_));
                self.refuse(if is_list { "list" } else { "watch" }, status).await?;
                Ok(Next::Relist)
            }
            // The server is busy or away, and knows where the watch was when it is back.
            429 | 503 if self.listing.is_none() => Ok(Next::Resume),
            // 410: it has forgotten. The watcher sees that in events only; anything else may mean as much.
            _ if starting || self.listing.is_some() => Ok(Next::Relist),
            _ => Ok(Next::Resume),
        }
    }

    /// There are no objects of the kind, as far as can be known.
    async fn end_list_without_any(&mut self) -> Result<(), Gone> {
        self.listing = None;
        self.end_list().await
    }

    /// The API server answers, but does not let us list or watch.
    async fn refuse(&mut self, verb: &str, status: &Status) -> Result<(), Gone> {
        let resource = K::plural(&());
        let hint = match status.code {
            401 => "give Sockeye valid credentials",
            403 => "bind Sockeye's account to a role that may list and watch them",
            _ => "is this a Kubernetes API server?",
        };
        let problem = Problem {
            object: Self::refusal_origin(),
            field: String::new(),
            what: format!("cannot {verb} {resource}: {} ({}); {hint}", status.message, status.code),
        };
        if self.refused.as_ref() != Some(&problem) {
            warn!(%problem, "refused by the API server");
            self.refused = Some(problem.clone());
            let refusal = Change::Problems { origin: problem.object.clone(), problems: vec![problem] };
            send(self.changes, refusal).await?;
        }
        Ok(())
    }

    async fn allow(&mut self) -> Result<(), Gone> {
        // A paged list announces itself before it asks: an empty one says nothing yet.
        let answered = self.listing.as_ref().is_none_or(|listing| !listing.objects.is_empty());
        if answered && self.refused.take().is_some() {
            info!(kind = %self.kind, "allowed by the API server");
            let solved = Change::Problems { origin: Self::refusal_origin(), problems: Vec::new() };
            send(self.changes, solved).await?;
        }
        Ok(())
    }

    fn refusal_origin() -> String {
        format!("API server, {}", K::plural(&()))
    }
}
