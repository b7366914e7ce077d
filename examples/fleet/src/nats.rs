//! The agents as one NATS service, on any number of machines.
//!
//! Each VM's process is an instance of the service `fleet`. It takes requests on `fleet.vm.NAME`, and on `fleet.any`, which
//! NATS gives to one member of the queue group. Discovery and statistics are NATS' own (`$SRV.INFO.fleet`, `$SRV.STATS.fleet`).
//!
//! An answer is several messages to the request's inbox, as NATS carries at most 1 MiB in one:
//!
//! 1. `Fleet-Taken: RUN`, at once: this run of a VM has the request. When a run ends, its supervisor says so on `fleet.gone`,
//!    so a caller need not wait for the time limit. NATS itself says at once if there is nobody to take a request.
//! 2. the parts, each with its number in `Fleet-Part`. The sender is never more than a window ahead of its caller: the parts
//!    of a long answer have a reply subject, on which the caller says how many it has.
//! 3. an empty message whose `Fleet-Parts` is how many there were, or a service error: its code is 503 if the request was not
//!    carried out, and 500 if it perhaps was.
//!
//! NATS delivers a message at most once. So a request is never repeated unless it was certainly not carried out, or its
//! caller allows it ([`Repeat::May`]).

use std::collections::HashMap;
use std::time::Duration;

use async_nats::service::{self, ServiceExt};
use async_nats::{Client, ConnectOptions, HeaderMap, Message, Subscriber};
use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt, stream};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at};
use tokio_krun::AgentStream;
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use tokio_util::sync::CancellationToken;

use crate::link::{Agent, Ended, Failure, drive};
use crate::protocol::{Answer, Ask, Request, framed, text};
use crate::{Result, vm::Settings};

const ANY: &str = "fleet.any";
const GONE: &str = "fleet.gone";
const TAKEN: &str = "Fleet-Taken";
const PART: &str = "Fleet-Part";
const PARTS: &str = "Fleet-Parts";
const LIMIT_MS: &str = "Fleet-Limit-Ms";

/// How many parts of an answer may be on their way: 1 MiB.
const WINDOW: u64 = 16;

/// How many requests one VM's process takes before it answers that it is busy.
const TAKES: usize = 64;

/// How soon a VM says that it has taken a request.
const TAKE_LIMIT: Duration = Duration::from_secs(2);

/// The longest time limit that a caller may set.
const LONGEST: Duration = Duration::from_secs(600);

/// How many ended runs a caller remembers.
const ENDED_RUNS: usize = 1024;

/// Whether a machine or a VM may be called so: the name is one token of a subject.
pub fn is_name(name: &str) -> bool {
    let has_meaning = |c: char| c.is_whitespace() || c.is_control() || ".*>".contains(c);
    !name.is_empty() && !name.contains(has_meaning)
}

/// Connects, now or as soon as the server is there, and again whenever it was away.
///
/// # Errors
///
/// If the address is none.
pub async fn connect(server: &str, name: &str) -> Result<Client> {
    let options = ConnectOptions::new()
        .name(name)
        .retry_on_initial_connect()
        .subscription_capacity(1024)
        .reconnect_delay_callback(|tries| Duration::from_millis(50 << tries.min(5)));
    Ok(options.connect(server).await?)
}

/// Tells all callers that a run of a VM has ended.
pub async fn announce_end(client: &Client, run: &str) {
    // While the server is away, it is sent later. Nobody waits for more than the time limit.
    let _ = timeout(
        Duration::from_secs(1),
        client.publish(GONE, Bytes::from(run.to_owned())),
    )
    .await;
}

// ---- the VM's process ----------------------------------------------------------------------------

/// Offers the agent to callers and to the supervisor, until its VM ends or the supervisor stops it.
///
/// `alone` says that the supervisor has gone.
pub(crate) async fn serve(
    stream: AgentStream,
    socket: UnixStream,
    server: &str,
    settings: &Settings,
    alone: CancellationToken,
) -> Result {
    let client = connect(server, &settings.name).await?;
    let (agent, mut jobs) = Agent::new();
    let (closing, settled) = (CancellationToken::new(), CancellationToken::new());
    let stall = Duration::from_millis(settings.stall_ms);
    let mut supervisor = framed(socket);
    // The requests and bytes that the agent has answered, once it has said anything.
    let answered = watch::Sender::new(None);
    let heard = |answer: &Answer| {
        answered.send_modify(|answered| {
            let (requests, bytes) = answered.get_or_insert((0, 0));
            match answer {
                Answer::Part(part) => *bytes += part.len() as u64,
                Answer::Done => *requests += 1,
                _ => {}
            }
        });
    };

    // It has the queue, so that requests which are still in it fail when the VM ends.
    let driving = async {
        let ended = drive(stream, &mut jobs, stall, heard).await;
        drop(jobs);
        closing.cancel();
        Ok(ended)
    };
    let offering = async {
        let offered = offer(&client, &agent, settings, &closing).await;
        closing.cancel();
        settled.cancel();
        offered
    };
    let obeying = async {
        if obey(
            &mut supervisor,
            &agent,
            answered.subscribe(),
            &closing,
            &settled,
        )
        .await
        .is_err()
        {
            alone.cancel();
        }
        Ok(())
    };
    // A VM that cannot be offered is of no use: the first error ends all.
    let working = async { tokio::try_join!(driving, offering, obeying) };
    // The agent may be at work for long. So this waits beside what waits for the agent.
    let ending = async {
        alone.cancelled().await;
        end_alone(&client, settings, &closing, &settled).await
    };
    let ended = tokio::select! {
        ended = working => ended,
        never = check(&agent) => never,
        never = ending => never,
    };
    let _ = timeout(Duration::from_secs(1), client.flush()).await;
    let words = match ended {
        Ok((Ended::Closed(Some(_)), ..)) => return Ok(()),
        Ok((Ended::Closed(None), ..)) => "the agent has closed its port".into(),
        Ok((Ended::Stalled, ..)) => format!("stalled: owed an answer, sent nothing for {stall:?}"),
        Ok((Ended::Failed(words), ..)) => words,
        Err(error) => format!("cannot offer the service: {error}"),
    };
    if supervisor
        .send(Answer::Goodbye(words).encode())
        .await
        .is_err()
    {
        end_alone(&client, settings, &closing, &settled).await;
    }
    std::process::exit(1) // A guest that has stalled does not end by itself.
}

/// Carries out what the supervisor requests, until `closing` or its request to stop. Fails if it has gone.
async fn obey(
    supervisor: &mut Framed<UnixStream, LengthDelimitedCodec>,
    agent: &Agent,
    mut answered: watch::Receiver<Option<(u64, u64)>>,
    closing: &CancellationToken,
    settled: &CancellationToken,
) -> std::io::Result<()> {
    loop {
        let frame = tokio::select! {
            frame = supervisor.next() => frame,
            () = closing.cancelled() => return Ok(()),
        };
        let frame = frame.ok_or(std::io::ErrorKind::UnexpectedEof)??;
        let answer = match Request::decode(&frame)? {
            Request::Ask(_) => Answer::Refused("this agent is asked by NATS".into()),
            // Not the agent's own answer: that would wait behind all that callers ask.
            Request::Status => {
                let answered = tokio::select! {
                    answered = answered.wait_for(Option::is_some) => answered.ok().and_then(|now| *now),
                    () = closing.cancelled() => return Ok(()),
                };
                let (requests, bytes) = answered.unwrap_or_default();
                Answer::Status { requests, bytes }
            }
            Request::Stop => {
                closing.cancel();
                settled.cancelled().await; // What was taken is answered first.
                let stopped = agent.request(Request::Stop, Instant::now() + LONGEST).await;
                if let Ok(mut reply) = stopped
                    && let Ok(answer) = reply.next().await
                {
                    supervisor.send(answer.encode()).await?;
                }
                return Ok(());
            }
        };
        supervisor.send(answer.encode()).await?;
    }
}

/// Asks the agent something every second, as one that nobody asks may stall too.
async fn check(agent: &Agent) -> ! {
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // With a full queue it is at work. `drive` notices if it stalls.
        if let Some(mut reply) = agent.try_request(Request::Status, Instant::now() + LONGEST) {
            let _ = reply.next().await;
        }
    }
}

/// The supervisor has gone: what was taken is answered for a moment, and then this process itself says that its run ends.
async fn end_alone(
    client: &Client,
    settings: &Settings,
    closing: &CancellationToken,
    settled: &CancellationToken,
) -> ! {
    closing.cancel();
    let _ = timeout(Duration::from_secs(1), settled.cancelled()).await;
    announce_end(client, &settings.run).await;
    let _ = timeout(Duration::from_millis(500), client.flush()).await;
    std::process::exit(1)
}

/// Takes requests until `closing`, and answers those that it has taken.
async fn offer(
    client: &Client,
    agent: &Agent,
    settings: &Settings,
    closing: &CancellationToken,
) -> Result {
    let metadata = HashMap::from([
        ("vm".into(), settings.name.clone()),
        ("run".into(), settings.run.clone()),
    ]);
    let builder = client
        .service_builder()
        .description("The agents of a fleet of VMs")
        .metadata(metadata);
    let service = builder.start("fleet", "1.0.0").await?;
    let own = service
        .endpoint_builder()
        .name("own")
        .add(format!("fleet.vm.{}", settings.name))
        .await?;
    let any = service.endpoint_builder().name("any").add(ANY).await?;
    let mut requests = stream::select(own, any);
    let mut taken = JoinSet::new();
    loop {
        let request = tokio::select! {
            request = requests.next() => request,
            Some(_) = taken.join_next() => continue,
            () = closing.cancelled() => break,
        };
        let Some(request) = request else { break };
        if taken.len() < TAKES {
            taken.spawn(answer(
                client.clone(),
                agent.clone(),
                request,
                settings.run.clone(),
            ));
        } else {
            refuse(&request, &Failure::never_sent("the VM is busy")).await;
        }
    }
    let _ = service.stop().await; // If it fails, nothing is offered any more.
    let late = async {
        while let Some(request) = requests.next().await {
            refuse(&request, &Failure::never_sent("the VM is shut down")).await;
        }
    };
    let _ = timeout(Duration::from_millis(200), late).await;
    while taken.join_next().await.is_some() {}
    Ok(())
}

async fn answer(client: Client, agent: Agent, request: service::Request, run: String) {
    match send_parts(&client, &agent, &request, &run).await {
        Ok(parts) => {
            let _ = request
                .respond_with_headers(Ok(Bytes::new()), header(PARTS, &parts.to_string()))
                .await;
        }
        Err(failure) => refuse(&request, &failure).await,
    }
}

async fn refuse(request: &service::Request, failure: &Failure) {
    let code = if failure.perhaps_carried_out {
        500
    } else {
        503
    };
    // If the caller cannot be reached, its time limit tells it.
    let _ = request
        .respond(Err(service::error::Error {
            status: failure.words.clone(),
            code,
        }))
        .await;
}

/// Returns how many parts it has sent.
async fn send_parts(
    client: &Client,
    agent: &Agent,
    request: &service::Request,
    run: &str,
) -> Result<u64, Failure> {
    let asked = Instant::now();
    let Message {
        payload,
        reply,
        headers,
        ..
    } = &request.message;
    let inbox = reply
        .clone()
        .ok_or_else(|| Failure::never_sent("the request has no reply subject"))?;
    let limit = headers
        .as_ref()
        .and_then(|headers| headers.get(LIMIT_MS)?.as_str().parse().ok());
    let limit = limit.map_or(LONGEST, Duration::from_millis).min(LONGEST);
    let ask = match Request::decode(payload) {
        Ok(ask @ Request::Ask(_)) => ask,
        _ => return Err(Failure::never_sent("not a request to an agent")),
    };
    let lost = |_| Failure::perhaps("the connection to NATS is closed");
    client
        .publish_with_headers(inbox.clone(), header(TAKEN, run), Bytes::new())
        .await
        .map_err(lost)?;

    let deadline = asked + limit;
    let mut reply = agent.request(ask, deadline).await?;
    let mut sent = 0;
    let mut window: Option<(String, Subscriber)> = None;
    let mut received = 0;
    loop {
        let part = match reply.next().await? {
            Answer::Part(part) => part,
            Answer::Done => return Ok(sent),
            Answer::Refused(words) => return Err(Failure::perhaps(words)),
            _ => {
                return Err(Failure::perhaps(
                    "the agent's answer is none to the request",
                ));
            }
        };
        let headers = header(PART, &sent.to_string());
        sent += 1;
        // Short answers need no window.
        if sent > WINDOW / 2 && window.is_none() {
            let subject = client.new_inbox();
            let subscriber = client
                .subscribe(subject.clone())
                .await
                .map_err(|_| lost_words())?;
            window = Some((subject, subscriber));
        }
        match &mut window {
            None => client
                .publish_with_headers(inbox.clone(), headers, part)
                .await
                .map_err(lost)?,
            Some((subject, received_by_caller)) => {
                let published = client.publish_with_reply_and_headers(
                    inbox.clone(),
                    subject.clone(),
                    headers,
                    part,
                );
                published.await.map_err(lost)?;
                while sent - received >= WINDOW {
                    let count = timeout_at(deadline, received_by_caller.next()).await;
                    let count = count.map_err(|_| {
                        Failure::perhaps("the caller did not read within the time limit")
                    })?;
                    let count =
                        count.and_then(|message| text(&message.payload).parse::<u64>().ok());
                    received = count.ok_or_else(lost_words)?.clamp(received, sent);
                }
            }
        }
    }
}

fn lost_words() -> Failure {
    Failure::perhaps("the connection to NATS is closed")
}

fn header(name: &'static str, value: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(name, value);
    headers
}

// ---- a caller ------------------------------------------------------------------------------------

/// Whether a request that was perhaps carried out may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    Never,
    May,
}

/// Asks VMs anywhere.
#[derive(Clone)]
pub struct Caller {
    client: Client,
    ended: watch::Receiver<Vec<String>>,
}

impl Caller {
    /// # Errors
    ///
    /// If the address is none, or the connection is closed.
    pub async fn connect(server: &str) -> Result<Self> {
        let client = connect(server, "caller").await?;
        let mut gone = client.subscribe(GONE).await?;
        let (sender, ended) = watch::channel(Vec::new());
        tokio::spawn(async move {
            while let Some(message) = gone.next().await {
                sender.send_modify(|runs: &mut Vec<String>| {
                    if runs.len() == ENDED_RUNS {
                        runs.remove(0);
                    }
                    runs.push(text(&message.payload));
                });
            }
        });
        Ok(Self { client, ended })
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Asks the VM `to`, or any. A request that was certainly not carried out is sent again until the deadline.
    ///
    /// # Errors
    ///
    /// If `to` is no name, there is no whole answer by the deadline, or the request may not be sent again.
    pub async fn ask(
        &self,
        to: Option<&str>,
        ask: Ask,
        deadline: Instant,
        repeat: Repeat,
    ) -> Result<Bytes, Failure> {
        let subject = match to {
            None => ANY.into(),
            Some(name) if is_name(name) => format!("fleet.vm.{name}"),
            Some(name) => {
                let words = format!("no VM can be called {name:?}: not part of a NATS subject");
                return Err(Failure::never_sent(words));
            }
        };
        let mut pause = Duration::from_millis(10);
        loop {
            let failure = match self.ask_once(&subject, ask, deadline).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            if (failure.perhaps_carried_out && repeat == Repeat::Never)
                || Instant::now() + pause >= deadline
            {
                return Err(failure);
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    async fn ask_once(&self, subject: &str, ask: Ask, deadline: Instant) -> Result<Bytes, Failure> {
        // Without a connection, also sending waits.
        let asking = self.ask_and_receive(subject, ask, deadline);
        let late = |_| Failure::perhaps("no answer within the time limit");
        timeout_at(deadline, asking).await.map_err(late)?
    }

    async fn ask_and_receive(
        &self,
        subject: &str,
        ask: Ask,
        deadline: Instant,
    ) -> Result<Bytes, Failure> {
        let inbox = self.client.new_inbox();
        let mut messages = self
            .client
            .subscribe(inbox.clone())
            .await
            .map_err(|_| lost_words())?;
        let limit = deadline.saturating_duration_since(Instant::now());
        let headers = header(LIMIT_MS, &limit.as_millis().to_string());
        let asked = self.client.publish_with_reply_and_headers(
            subject.to_owned(),
            inbox,
            headers,
            Request::Ask(ask).encode(),
        );
        asked.await.map_err(|_| lost_words())?;

        let mut whole = BytesMut::new();
        let (mut parts, mut run) = (0, None);
        let mut ended = self.ended.clone();
        loop {
            let (until, late) = match run {
                None if deadline > Instant::now() + TAKE_LIMIT => {
                    (Instant::now() + TAKE_LIMIT, "no VM has taken the request")
                }
                _ => (deadline, "no answer within the time limit"),
            };
            let its_end = async {
                match &run {
                    Some(run) => ended.wait_for(|runs| runs.contains(run)).await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            let message = tokio::select! {
                biased;
                message = timeout_at(until, messages.next()) => message.map_err(|_| Failure::perhaps(late))?,
                _ = its_end => return Err(Failure::perhaps("the VM has ended")),
            };
            let message = message.ok_or_else(lost_words)?;
            if message.status == Some(async_nats::StatusCode::NO_RESPONDERS) {
                return Err(Failure::never_sent("no VM is there"));
            }
            let headers = message.headers.unwrap_or_default();
            let number = |name| {
                headers
                    .get(name)
                    .and_then(|value| value.as_str().parse::<u64>().ok())
            };
            if let Some(taken) = headers.get(TAKEN) {
                run = Some(taken.as_str().to_owned());
            } else if let Some(code) = number(async_nats::service::NATS_SERVICE_ERROR_CODE) {
                let words = headers
                    .get(async_nats::service::NATS_SERVICE_ERROR)
                    .map_or("refused", |words| words.as_str());
                return Err(Failure {
                    words: text(words.as_bytes()),
                    perhaps_carried_out: code != 503,
                });
            } else if let Some(total) = number(PARTS) {
                let complete = total == parts;
                return if complete {
                    Ok(whole.freeze())
                } else {
                    Err(Failure::perhaps("a part of the answer was lost"))
                };
            } else if number(PART) != Some(parts)
                || whole.len() + message.payload.len() > ask.size as usize
            {
                return Err(Failure::perhaps("a part of the answer was lost"));
            } else {
                whole.extend_from_slice(&message.payload);
                parts += 1;
                if let Some(reply) = message.reply {
                    let count = Bytes::from(parts.to_string());
                    self.client
                        .publish(reply, count)
                        .await
                        .map_err(|_| lost_words())?;
                }
            }
        }
    }

    /// What NATS knows of the service: each instance's answer to `$SRV.STATS.fleet`, as JSON.
    ///
    /// # Errors
    ///
    /// If the connection is closed.
    pub async fn statistics(&self) -> Result<Vec<String>> {
        let inbox = self.client.new_inbox();
        let mut answers = self.client.subscribe(inbox.clone()).await?;
        self.client
            .publish_with_reply("$SRV.STATS.fleet", inbox, Bytes::new())
            .await?;
        let mut instances = Vec::new();
        // NATS does not say how many there are: the last has come when no other does for a while.
        while let Ok(Some(answer)) = timeout(Duration::from_millis(500), answers.next()).await {
            if !answer.payload.is_empty() {
                instances.push(String::from_utf8_lossy(&answer.payload).into_owned());
            }
        }
        Ok(instances)
    }
}
