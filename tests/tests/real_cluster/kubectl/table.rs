//! What is typed: one line each, first straight at the apiserver, then through the front.

/// How the outputs of both ways are compared; exit codes always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compare {
    /// Standard output and error, without what differs from moment to moment.
    All,
    /// Nothing more than the exit code: the output tells how long something took.
    Exit,
}

/// Which protocols carry the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An ordinary request or a watch.
    Plain,
    /// A two-way connection: once as WebSocket, once as SPDY.
    Upgrade,
}

/// One line for a shell; `$K` is kubectl with its kubeconfig and namespace, `$NS` the namespace, `$D` a folder.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    pub(super) name: &'static str,
    pub(super) script: &'static str,
    pub(super) kind: Kind,
    pub(super) compare: Compare,
}

const fn plain(name: &'static str, script: &'static str) -> Line {
    Line {
        name,
        script,
        kind: Kind::Plain,
        compare: Compare::All,
    }
}

const fn timed(name: &'static str, script: &'static str) -> Line {
    Line {
        compare: Compare::Exit,
        ..plain(name, script)
    }
}

const fn upgrade(name: &'static str, script: &'static str) -> Line {
    Line {
        kind: Kind::Upgrade,
        ..plain(name, script)
    }
}

/// In this order: later lines use what earlier ones made.
pub(super) const LINES: &[Line] = &[
    plain("create namespace", "$K create namespace $NS"),
    plain("apply", "$K apply -f $D/objects.yaml"),
    plain("apply again", "$K apply -f $D/objects.yaml"),
    plain(
        "apply --server-side",
        "$K apply --server-side -f $D/server-side.yaml",
    ),
    plain(
        "apply --server-side, conflict",
        "$K apply --server-side --field-manager=other -f $D/conflict.yaml",
    ),
    timed(
        "wait",
        "$K wait --for=condition=Ready pod/box pod/cat pod/web-server --timeout=120s",
    ),
    timed(
        "wait for a deployment",
        "$K wait --for=condition=Available deployment/web --timeout=120s",
    ),
    plain(
        "rollout status",
        "$K rollout status deployment/web --timeout=120s",
    ),
    plain("get", "$K get pod box"),
    plain("get -o wide", "$K get pods -l app=box -o wide"),
    plain("get -o yaml", "$K get configmap conf -o yaml"),
    plain(
        "get -o jsonpath",
        "$K get pod box -o 'jsonpath={.spec.containers[*].name}'",
    ),
    plain("get all kinds", "$K get deployments,configmaps,services"),
    plain("get --chunk-size", "$K get configmaps --chunk-size=1 -o name"),
    plain("get of nothing", "$K get configmap nothing"),
    plain("describe", "$K describe configmap conf"),
    plain("describe pod", "$K describe pod box"),
    plain("edit", "EDITOR=$D/editor $K edit configmap conf"),
    plain("edited", "$K get configmap conf -o 'jsonpath={.data.word}'"),
    plain(
        "patch",
        "$K patch configmap conf --type merge -p '{\"data\":{\"patched\":\"yes\"}}'",
    ),
    plain(
        "patch, strategic",
        "$K patch deployment web -p '{\"spec\":{\"template\":{\"metadata\":{\"labels\":{\"patched\":\"yes\"}}}}}'",
    ),
    plain(
        "patch, JSON",
        "$K patch configmap conf --type json -p '[{\"op\":\"remove\",\"path\":\"/data/patched\"}]'",
    ),
    plain("scale", "$K scale deployment web --replicas=1"),
    timed(
        "rollout status of a change",
        "$K rollout status deployment/web --timeout=120s",
    ),
    plain("label", "$K label configmap conf seen=yes"),
    plain("logs", "$K logs box"),
    plain("logs -f", "$K logs -f counter"),
    plain("logs --tail", "$K logs counter --tail=2"),
    plain(
        "auth can-i",
        "$K auth can-i create pods; $K auth can-i --list --no-headers | sort | head -3",
    ),
    plain("api-resources", "$K api-resources"),
    plain("api-versions", "$K api-versions"),
    plain("explain", "$K explain pod.spec.containers.livenessProbe"),
    plain(
        "get --watch",
        "timeout 20 $K get configmap watched --watch-only -o 'jsonpath={.data.n}{\"\\n\"}' >$D/watch & \
         for n in 1 2 3 4 5 6 7 8 9 10; do sleep 0.3; $K patch configmap watched --type merge -p \"{\\\"data\\\":{\\\"n\\\":\\\"$n\\\"}}\" >/dev/null; \
         [ $(wc -l <$D/watch) -ge 3 ] && break; done; kill $! 2>/dev/null; wait $! 2>/dev/null; \
         [ $(wc -l <$D/watch) -ge 3 ] && echo three events or more",
    ),
    plain(
        "proxy",
        ": >$D/proxy; $K proxy --append-server-path --port=0 >$D/proxy & for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do \
         grep -q Starting $D/proxy && break; sleep 0.2; done; port=$(sed 's/.*://' $D/proxy); \
         curl -s http://127.0.0.1:$port/api/v1/namespaces/$NS/configmaps/conf | grep -c '\"word\": \"after\"'; kill $!; wait $! 2>/dev/null; true",
    ),
    upgrade("exec", "$K exec box -- echo hello"),
    upgrade(
        "exec, exit code and both outputs",
        "$K exec box -- sh -c 'echo out; echo err >&2; exit 7'",
    ),
    upgrade(
        "exec -i",
        "seq 1 20000 | $K exec -i box -- sh -c 'wc -l; echo done'",
    ),
    upgrade(
        "exec, 20 MB",
        "$K exec box -- sh -c 'head -c 20000000 /dev/zero' | wc -c",
    ),
    upgrade(
        "exec -it",
        "script -qec \"stty rows 33 cols 101; $K exec -it box -- sh -c 'sleep 1; stty size; test -t 0 && echo a terminal; exit 3'\" /dev/null </dev/null",
    ),
    upgrade(
        "exec -it, resized",
        "script -qec \"stty rows 20 cols 80; (sleep 2; stty rows 44 cols 90) & $K exec -it box -- sh -c 'sleep 4; stty size'\" /dev/null </dev/null",
    ),
    upgrade("exec in nothing", "$K exec nothing -- true"),
    upgrade("exec of nothing", "$K exec box -- /no/such/program"),
    upgrade(
        "attach",
        "$K delete pod cat --wait=true >/dev/null 2>&1; $K apply -f $D/objects.yaml >/dev/null; \
         $K wait --for=condition=Ready pod/cat --timeout=120s >/dev/null; (sleep 2; printf 'one\\ntwo\\n') | $K attach -q -i cat",
    ),
    upgrade(
        "cp both ways",
        "$K cp $D/file box:/tmp/copied && $K exec box -- md5sum /tmp/copied && rm -f $D/back && \
         $K cp box:/tmp/copied $D/back && cmp $D/file $D/back && echo same",
    ),
    upgrade(
        "port-forward, many connections",
        ": >$D/forward; $K port-forward pod/web-server :8080 >$D/forward & for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do \
         grep -q Forwarding $D/forward && break; sleep 0.2; done; \
         port=$(sed -n 's/.*127.0.0.1:\\([0-9]*\\) .*/\\1/p' $D/forward | head -1); \
         { for _ in $(seq 1 30); do curl -s --max-time 20 -o /dev/null -w '%{http_code} %{size_download}\\n' http://127.0.0.1:$port/bin/file & pids=\"$pids $!\"; done; \
         for pid in $pids; do wait $pid && echo answered; done; } | sort; kill %1 2>/dev/null; wait %1 2>/dev/null; true",
    ),
    upgrade(
        "debug",
        "$K debug box --image=docker.io/library/busybox:dev --image-pull-policy=Never -c dbg-$RANDOM --attach -q -- sh -c 'sleep 2; echo debugged'",
    ),
    plain("delete one", "$K delete configmap conf"),
    plain("delete of nothing", "$K delete configmap conf"),
    timed("delete all", "$K delete namespace $NS --wait=false"),
];
