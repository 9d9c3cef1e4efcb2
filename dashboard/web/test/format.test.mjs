import assert from "node:assert/strict";
import { test } from "node:test";
import { ago, bytes, clock, count, digest, duration, grouped, roundTrip, until } from "../dist/format.js";

const cases = (name, f, table) =>
  test(name, () => {
    for (const [input, expected] of table) assert.equal(f(...[input].flat()), expected);
  });

cases("durations have at most two units and are never negative", duration, [
  [-5, "0 s"], [999, "0 s"], [59_999, "59 s"], [60_000, "1 min"], [3_600_000, "1 h"],
  [7_500_000, "2 h 5 min"], [86_400_000, "1 d"], [90_000_000, "1 d 1 h"],
]);
cases("ages", ago, [[[1000, 1500], "just now"], [[1000, 9000], "8 s ago"], [[9000, 1000], "just now"]]);
cases("moments to come", until, [[[5000, 1000], "in 4 s"], [[1000, 5000], "now"]]);
cases("bytes", bytes, [[0, "0 B"], [1023, "1023 B"], [1536, "1.5 KiB"], [12 * 1024 * 1024, "12 MiB"], [2 ** 62, "4096 PiB"]]);
cases("counts", count, [[[1, "watch", "watches"], "1 watch"], [[1234, "watch", "watches"], "1\u202f234 watches"]]);
cases("groups of digits", grouped, [[0, "0"], [999, "999"], [1234567, "1\u202f234\u202f567"]]);
cases("round trips", roundTrip, [[850, "850 µs"], [1400, "1.4 ms"], [38_200, "38 ms"]]);
cases("digests", digest, [["", ""], ["abcd", "abcd"], ["0123456789abcdef0123", "0123 4567 89ab cdef …"]]);
test("clock", () => assert.match(clock(1_700_000_000_000), /^\d\d:\d\d:\d\d$/));
