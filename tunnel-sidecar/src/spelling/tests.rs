use proptest::prelude::*;

use super::*;

/// (text, reverse, listen, dials, protocol), as chisel 1.11.3 reads it; forward remotes without a listening host are
/// the one difference.
const TABLE: [(&str, bool, &str, &str, Protocol); 27] = [
    (
        "R:24910:127.0.0.1:24911",
        true,
        "0.0.0.0:24910",
        "127.0.0.1:24911",
        Protocol::Tcp,
    ),
    (
        "R:example.com:80",
        true,
        "0.0.0.0:80",
        "example.com:80",
        Protocol::Tcp,
    ),
    ("R:80/udp", true, "0.0.0.0:80", "127.0.0.1:80", Protocol::Udp),
    (
        "R:24912:[::1]:53/udp",
        true,
        "0.0.0.0:24912",
        "[::1]:53",
        Protocol::Udp,
    ),
    (
        "R:[::]:3000:[::1]:3000",
        true,
        "[::]:3000",
        "[::1]:3000",
        Protocol::Tcp,
    ),
    ("R:socks", true, "127.0.0.1:1080", "socks", Protocol::Tcp),
    (
        "R:127.0.0.1:5000:socks",
        true,
        "127.0.0.1:5000",
        "socks",
        Protocol::Tcp,
    ),
    ("R:5000:socks", true, "127.0.0.1:5000", "socks", Protocol::Tcp),
    ("R:0.0.0.0:socks", true, "0.0.0.0:1080", "socks", Protocol::Tcp),
    ("R:2222:22", true, "0.0.0.0:2222", "127.0.0.1:22", Protocol::Tcp),
    (
        "R:2222:localhost:22",
        true,
        "0.0.0.0:2222",
        "localhost:22",
        Protocol::Tcp,
    ),
    (
        "R:10.0.0.1:2222:localhost:22",
        true,
        "10.0.0.1:2222",
        "localhost:22",
        Protocol::Tcp,
    ),
    ("R:80/tcp", true, "0.0.0.0:80", "127.0.0.1:80", Protocol::Tcp),
    ("3000", false, "127.0.0.1:3000", "127.0.0.1:3000", Protocol::Tcp),
    (
        "example.com:3000",
        false,
        "127.0.0.1:3000",
        "example.com:3000",
        Protocol::Tcp,
    ),
    (
        "3000:google.com:80",
        false,
        "127.0.0.1:3000",
        "google.com:80",
        Protocol::Tcp,
    ),
    (
        "192.168.0.1:3000:google.com:80",
        false,
        "192.168.0.1:3000",
        "google.com:80",
        Protocol::Tcp,
    ),
    (
        "0.0.0.0:3000:google.com:80",
        false,
        "0.0.0.0:3000",
        "google.com:80",
        Protocol::Tcp,
    ),
    (
        "127.0.0.1:1080:socks",
        false,
        "127.0.0.1:1080",
        "socks",
        Protocol::Tcp,
    ),
    ("socks", false, "127.0.0.1:1080", "socks", Protocol::Tcp),
    (
        "1.1.1.1:53/udp",
        false,
        "127.0.0.1:53",
        "1.1.1.1:53",
        Protocol::Udp,
    ),
    (
        "5353:1.1.1.1:53/udp",
        false,
        "127.0.0.1:5353",
        "1.1.1.1:53",
        Protocol::Udp,
    ),
    (
        "localhost:5353:dns.example.com:53/udp",
        false,
        "localhost:5353",
        "dns.example.com:53",
        Protocol::Udp,
    ),
    (
        "5353/udp:1.1.1.1:53/udp",
        false,
        "127.0.0.1:5353",
        "1.1.1.1:53",
        Protocol::Udp,
    ),
    // A port between two hosts belongs to the first, and a host before two ports to the dialled one.
    (
        "a.example:b.example:80",
        false,
        "a.example:80",
        "b.example:80",
        Protocol::Tcp,
    ),
    (
        "db.example:80:81",
        false,
        "127.0.0.1:80",
        "db.example:81",
        Protocol::Tcp,
    ),
    (
        "R:[fd00::1]:443",
        true,
        "0.0.0.0:443",
        "[fd00::1]:443",
        Protocol::Tcp,
    ),
];

#[test]
fn each_spelling_means_what_chisel_means() {
    for (text, reverse, listen, dials, protocol) in TABLE {
        let read: Spelling = text.parse().unwrap_or_else(|bad| panic!("{text} {bad}"));
        assert_eq!(read.reverse, reverse, "{text}");
        assert_eq!(
            format!("{}:{}", read.listen_host, read.listen_port),
            listen,
            "{text}"
        );
        assert_eq!(read.dials.to_string(), dials, "{text}");
        assert_eq!(read.protocol, protocol, "{text}");
    }
}

#[test]
fn what_cannot_be_used_is_refused_with_a_sentence() {
    let text = |text: &str| match text.parse::<Spelling>() {
        Ok(read) => panic!("{text} was read as {read:?}"),
        Err(bad) => format!("{text} {bad}"),
    };
    let refused = [
        "R:0",
        "R:0:127.0.0.1:80",
        "R:70000:a:80",
        "R:80/TCP",
        "R:53/UDP",
        "R:80/sctp",
        "R:",
        "",
        "R:2222::22",
        "80:",
        "::1:80",
        "[::1:80",
        "[nonsense]:80",
        "[::1]x:80",
        "R:a:b",
        "R:a:80:b",
        "a:b:c:80",
        "1:2:3",
        "a b:80",
        "1:2:3:4:5",
        "5000/udp:socks",
        "53/tcp:a:53/udp",
        "stdio:example.com:22",
        "R:stdio:a:22",
        "r:80x",
        "a/b:80",
    ];
    insta::assert_snapshot!(refused.map(text).join("\n"), @r#"
    R:0 names port 0: the server would pick a port and tell nobody which; name one
    R:0:127.0.0.1:80 names port 0: the server would pick a port and tell nobody which; name one
    R:70000:a:80 has the number 70000, which is no port between 1 and 65535
    R:80/TCP ends a part in "/TCP": protocols are written in lower case, /tcp or /udp
    R:53/UDP ends a part in "/UDP": protocols are written in lower case, /tcp or /udp
    R:80/sctp names the protocol "sctp"; there are only /tcp and /udp
    R: is no remote: write [R:][listen-host:][listen-port:][host:]port[/udp]
     is no remote: write [R:][listen-host:][listen-port:][host:]port[/udp]
    R:2222::22 has an empty part: write each part, and IPv6 addresses in brackets, like R:2222:[::1]:22
    80: has an empty part: write each part, and IPv6 addresses in brackets, like R:2222:[::1]:22
    ::1:80 has an empty part: write each part, and IPv6 addresses in brackets, like R:2222:[::1]:22
    [::1:80 has "[::1:80", which is no IPv6 address in brackets
    [nonsense]:80 has "[nonsense]", which is no IPv6 address in brackets
    [::1]x:80 has "[::1]x", which is no IPv6 address in brackets
    R:a:b does not end in a port or in socks
    R:a:80:b does not end in a port or in socks
    a:b:c:80 names a host once too often: listen-host:listen-port:host:port is the longest form
    1:2:3 names a port once too often: listen-host:listen-port:host:port is the longest form
    a b:80 has "a b", which is neither a host nor a port
    1:2:3:4:5 has more than four parts; IPv6 addresses need brackets, like R:2222:[::1]:22
    5000/udp:socks asks for SOCKS over UDP; chisel has SOCKS over TCP only
    53/tcp:a:53/udp listens with one protocol and dials with the other, which chisel cannot do
    stdio:example.com:22 uses stdio, which is for a person at a terminal and not for an agent
    R:stdio:a:22 uses stdio, which is for a person at a terminal and not for an agent
    r:80x does not end in a port or in socks
    a/b:80 names the protocol "b"; there are only /tcp and /udp
    "#);
}

#[test]
fn names_are_stable_and_usable() {
    for (text, name) in [
        ("R:24910:127.0.0.1:24911", "remote-24910"),
        ("R:127.0.0.1:24910:db:5432", "remote-127.0.0.1-24910"),
        ("R:53/udp", "remote-53-udp"),
        ("R:socks", "remote-1080"),
        ("R:0.0.0.0:socks", "remote-0.0.0.0-1080"),
        ("R:[::]:3000:[::1]:3000", "remote-__-3000"),
        ("3000:google.com:80", "local-3000"),
        ("0.0.0.0:3000:google.com:80", "local-0.0.0.0-3000"),
    ] {
        assert_eq!(text.parse::<Spelling>().unwrap().name(), name, "{text}");
    }
}

fn spelled(read: &Spelling) -> String {
    let protocol = match read.protocol {
        Protocol::Tcp => "",
        Protocol::Udp => "/udp",
    };
    let prefix = if read.reverse { "R:" } else { "" };
    format!(
        "{prefix}{}:{}:{}{protocol}",
        read.listen_host, read.listen_port, read.dials
    )
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in ".*") {
        if let Ok(read) = text.parse::<Spelling>() {
            prop_assert_eq!(spelled(&read).parse::<Spelling>(), Ok(read));
        }
    }

    #[test]
    fn the_long_form_is_read_as_it_is_written(
        reverse: bool, udp: bool, from in 1_u16.., to in 1_u16..,
        listen in "[a-z][a-z0-9.-]{0,9}|\\[::1\\]|10\\.0\\.0\\.1",
        host in "[a-z][a-z0-9.-]{0,9}|\\[fd00::1\\]|10\\.0\\.0\\.2",
    ) {
        prop_assume!(listen != "stdio" && host != "stdio");
        let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
        let wanted = Spelling { reverse, listen_host: listen, listen_port: from, protocol, dials: Dials::Address { host, port: to } };
        prop_assert_eq!(spelled(&wanted).parse::<Spelling>(), Ok(wanted));
    }

    #[test]
    fn texts_close_to_spellings_never_panic(text in "(R:)?[0-9a-z:/\\[\\].]{0,30}(/udp)?") {
        if let Ok(read) = text.parse::<Spelling>() {
            prop_assert!(read.listen_port > 0);
            prop_assert!(read.name().len() <= 63);
        }
    }
}
