//! What one client asks, and what it must be answered: RESP over a connection of its own.

use std::collections::{BTreeMap, VecDeque};

use lockstep::engine::EngineKind;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, State};

use crate::machine::engine_kind;
use crate::rng::Rng;

/// What must come back.
#[derive(Debug, Clone)]
pub enum Reply {
    /// These bytes.
    Exactly(Vec<u8>),
    /// So many lines, whatever they say.
    Lines(usize),
    /// Nothing: the server goes away.
    Nothing,
}

/// What a client does next.
#[derive(Debug, Clone)]
pub enum Step {
    /// Sends requests at once, and goes on when all are answered.
    Ask { bytes: Vec<u8>, replies: Vec<Reply> },
    /// Does nothing for so many nanoseconds.
    Idle(u64),
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    pub handle: SocketHandle,
    pub name: String,
    script: VecDeque<Step>,
    unsent: Vec<u8>,
    received: Vec<u8>,
    awaited: VecDeque<Reply>,
    idle_until_ns: u64,
    opened: bool,
    answers: u64,
}

/// A request in RESP.
pub fn request(words: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
    out
}

fn bulk(value: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat()
}

impl Client {
    pub fn new(handle: SocketHandle, name: String, script: Vec<Step>, start_ns: u64) -> Self {
        Self {
            handle,
            name,
            script: script.into(),
            unsent: Vec::new(),
            received: Vec::new(),
            awaited: VecDeque::new(),
            idle_until_ns: start_ns,
            opened: false,
            answers: 0,
        }
    }

    /// How many answers it got.
    pub fn answers(&self) -> u64 {
        self.answers
    }

    /// Whether it is time to connect; true once.
    pub fn opens(&mut self, now_ns: u64) -> bool {
        let opens = !self.opened && now_ns >= self.idle_until_ns;
        self.opened |= opens;
        opens
    }

    /// When it does something by itself.
    pub fn wake_at_ns(&self) -> Option<u64> {
        let sleeps = !self.opened || (self.awaited.is_empty() && self.unsent.is_empty());
        (sleeps && !(self.script.is_empty() && self.opened)).then_some(self.idle_until_ns)
    }

    /// Whether its script is through and its connection closed.
    pub fn is_done(&self, socket: &Socket<'_>) -> bool {
        self.opened
            && self.script.is_empty()
            && self.awaited.is_empty()
            && matches!(socket.state(), State::Closed | State::TimeWait)
    }

    /// What it is doing, for people.
    pub fn describe(&self, socket: &Socket<'_>) -> String {
        format!(
            "{}: {:?}, {} steps left, {} bytes unsent, {} bytes queued, {} answers due",
            self.name,
            socket.state(),
            self.script.len(),
            self.unsent.len(),
            socket.send_queue(),
            self.awaited.len()
        )
    }

    /// Takes in answers and sends what is next. Where frames get lost, a connection may break: whoever loses
    /// several in a row waits so long that the other side gives up.
    pub fn serve(&mut self, socket: &mut Socket<'_>, now_ns: u64, lossy: bool) {
        while socket.can_recv() {
            let mut part = vec![0; 4096];
            let count = socket.recv_slice(&mut part).expect("there is something");
            self.received.extend_from_slice(&part[..count]);
        }
        self.check_answers();
        let open = matches!(socket.state(), State::Established | State::CloseWait);
        if self.opened && socket.state() == State::Closed {
            let left = self.awaited.iter().filter(|reply| !matches!(reply, Reply::Nothing)).count();
            assert!(left == 0 || lossy, "{}: the connection broke with {left} answers due", self.name);
            self.awaited.clear();
            self.unsent.clear();
            self.script.clear();
        }
        while open && self.awaited.is_empty() && self.unsent.is_empty() && now_ns >= self.idle_until_ns {
            match self.script.pop_front() {
                Some(Step::Ask { bytes, replies }) => {
                    self.unsent = bytes;
                    self.awaited = replies.into();
                }
                Some(Step::Idle(ns)) => self.idle_until_ns = now_ns + ns,
                None => {
                    socket.close();
                    break;
                }
            }
        }
        if socket.can_send() && !self.unsent.is_empty() {
            let count = socket.send_slice(&self.unsent).expect("it can");
            self.unsent.drain(..count);
        }
    }

    fn check_answers(&mut self) {
        while let Some(reply) = self.awaited.front() {
            let len = match reply {
                Reply::Exactly(bytes) => {
                    let known = bytes.len().min(self.received.len());
                    let (due, got) = (&bytes[..known], &self.received[..known]);
                    let text = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..known.min(80)]).into_owned();
                    assert!(due == got, "{}: {:?} where {:?} is due", self.name, text(got), text(due));
                    bytes.len()
                }
                Reply::Lines(count) => {
                    let ends = self.received.windows(2).enumerate().filter(|(_, pair)| pair == b"\r\n");
                    match ends.map(|(at, _)| at + 2).nth(count - 1) {
                        Some(end) => end,
                        None => return,
                    }
                }
                Reply::Nothing => return,
            };
            if self.received.len() < len {
                return;
            }
            self.received.drain(..len);
            self.awaited.pop_front();
            self.answers += 1;
        }
        assert!(self.received.is_empty(), "{}: bytes that nobody asked for", self.name);
    }
}

/// Most rounds of one DEBUG SPIN: some forty stops, of a guest that stops once in 100,000 rounds, or once in
/// as many instructions.
fn most_rounds() -> u64 {
    match engine_kind() {
        EngineKind::Kvm => 4_000_000,
        EngineKind::Soft => 330_000,
    }
}

/// What a client of a random run does: `steps` rounds on keys of its own.
pub fn script(rng: &mut Rng, prefix: &str, steps: u64) -> Vec<Step> {
    let mut keys: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut out = Vec::new();
    for _ in 0..steps {
        if rng.chance(200) {
            let ns = *rng.pick(&[1_000, 50_000, 900_000, 3_000_000, 700_000_000]);
            out.push(Step::Idle(rng.within(1, ns)));
        }
        let count = if rng.chance(150) { rng.within(2, 30) } else { 1 };
        let (mut bytes, mut replies) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (request, reply) = command(rng, prefix, &mut keys);
            bytes.extend_from_slice(&request);
            replies.push(reply);
        }
        out.push(Step::Ask { bytes, replies });
    }
    out
}

fn value(rng: &mut Rng) -> Vec<u8> {
    let len = match rng.below(100) {
        0..80 => rng.within(0, 100),
        80..98 => rng.within(100, 4_000),
        _ => rng.within(4_000, 60_000),
    };
    rng.bytes(len as usize)
}

fn command(rng: &mut Rng, prefix: &str, keys: &mut BTreeMap<Vec<u8>, Vec<u8>>) -> (Vec<u8>, Reply) {
    let key = |rng: &mut Rng| format!("{prefix}:{}", rng.below(12)).into_bytes();
    let ok = || Reply::Exactly(b"+OK\r\n".to_vec());
    let integer = |number: i64| Reply::Exactly(format!(":{number}\r\n").into_bytes());
    let k = key(rng);
    match rng.below(100) {
        0..30 => {
            let v = value(rng);
            let bytes = request(&[b"SET", &k, &v]);
            keys.insert(k, v);
            (bytes, ok())
        }
        30..55 => {
            let due = keys.get(&k).map_or(b"$-1\r\n".to_vec(), |v| bulk(v));
            (request(&[b"GET", &k]), Reply::Exactly(due))
        }
        55..67 => {
            let k = [&k[..], b":n"].concat();
            let number =
                keys.get(&k).map_or(0, |v| String::from_utf8_lossy(v).parse::<i64>().expect("a number"));
            keys.insert(k.clone(), (number + 1).to_string().into_bytes());
            (request(&[b"INCR", &k]), integer(number + 1))
        }
        67..77 => {
            let more = value(rng);
            let v = keys.entry(k.clone()).or_default();
            v.extend_from_slice(&more);
            (request(&[b"APPEND", &k, &more]), integer(v.len() as i64))
        }
        77..85 => {
            let (other, v, w) = (key(rng), value(rng), value(rng));
            let bytes = request(&[b"MSET", &k, &v, &other, &w]);
            keys.insert(k, v);
            keys.insert(other, w);
            (bytes, ok())
        }
        85..90 => {
            let count = i64::from(keys.remove(&k).is_some());
            (request(&[b"DEL", &k]), integer(count))
        }
        90..94 => (request(&[b"TIME"]), Reply::Lines(5)),
        94..97 => (request(&[b"PING"]), Reply::Exactly(b"+PONG\r\n".to_vec())),
        _ => {
            let rounds = rng.within(1, most_rounds()).to_string();
            (request(&[b"DEBUG", b"SPIN", rounds.as_bytes()]), Reply::Lines(1))
        }
    }
}
