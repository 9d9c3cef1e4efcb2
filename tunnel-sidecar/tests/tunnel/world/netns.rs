//! A network of its own, for what only a packet filter can do.

use std::{
    net::Ipv4Addr,
    process::Command,
    sync::atomic::{AtomicU8, Ordering},
};

/// One for each test process and use, so that two test programs do not meet.
static NEXT: AtomicU8 = AtomicU8::new(0);

/// A network namespace with one cable to ours; gone when dropped.
pub(crate) struct Netns {
    name: String,
    cable: String,
    inside: Ipv4Addr,
}

impl Netns {
    /// `None` only when somebody said that root may be missing.
    pub(crate) fn make() -> Option<Self> {
        let root = std::fs::read_to_string("/proc/self/status").unwrap();
        if !root.lines().any(|line| line.starts_with("Uid:\t0\t0")) {
            let allowed = std::env::var("ALLOW_MISSING_PEERS").is_ok_and(|value| value == "1");
            assert!(
                allowed,
                "a network namespace needs root; run as root, or set ALLOW_MISSING_PEERS=1"
            );
            println!("SKIPPED: a network namespace needs root");
            return None;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = std::process::id();
        let name = format!("pipeops-test-{id}-{number}");
        let cable = format!("pt{}{number}", id % 1_000_000);
        // 198.18.0.0/15 is for tests of networks (RFC 2544) and nobody's.
        let [third, fourth] = [(id % 250).to_le_bytes()[0], number * 4];
        let (outside, inside) = (
            Ipv4Addr::new(198, 19, third, fourth + 1),
            Ipv4Addr::new(198, 19, third, fourth + 2),
        );
        let netns = Self { name, cable, inside };
        let (name, cable) = (&netns.name, &netns.cable);
        run(&format!("ip netns add {name}"));
        run(&format!(
            "ip link add {cable} type veth peer name eth0 netns {name}"
        ));
        run(&format!("ip addr add {outside}/30 dev {cable}"));
        run(&format!("ip link set {cable} up"));
        netns.inside(&format!("ip addr add {inside}/30 dev eth0"));
        netns.inside("ip link set eth0 up");
        netns.inside("ip link set lo up");
        Some(netns)
    }

    /// Runs a command inside, and returns what it printed.
    pub(crate) fn inside(&self, command: &str) -> String {
        run(&format!("ip netns exec {} {command}", self.name))
    }

    /// Packets that its filter has dropped.
    pub(crate) fn dropped(&self) -> u64 {
        let rules = self.inside("iptables -nvxL");
        let drops = rules.lines().filter(|line| line.contains(" DROP "));
        drops
            .map(|line| line.split_whitespace().next().unwrap().parse::<u64>().unwrap())
            .sum()
    }

    /// What stands before a command that runs inside.
    pub(crate) fn prefix(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name].map(str::to_owned).into()
    }

    pub(crate) fn address(&self) -> Ipv4Addr {
        self.inside
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // The cable goes with the namespace's end of it.
        for command in [
            format!("ip link del {}", self.cable),
            format!("ip netns del {}", self.name),
        ] {
            let mut words = command.split(' ');
            Command::new(words.next().unwrap()).args(words).status().ok();
        }
    }
}

fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {said}");
    String::from_utf8(output.stdout).unwrap()
}
