// Numbers and times as people read them. Pure.
const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
/** How long, in at most two units: `8 s`, `3 min`, `2 h 5 min`, `4 d 1 h`. Never negative. */
export function duration(ms) {
    const left = Math.max(0, ms);
    if (left < MINUTE)
        return `${Math.floor(left / SECOND)} s`;
    if (left < HOUR)
        return `${Math.floor(left / MINUTE)} min`;
    if (left < DAY)
        return two(Math.floor(left / HOUR), "h", Math.floor((left % HOUR) / MINUTE), "min");
    return two(Math.floor(left / DAY), "d", Math.floor((left % DAY) / HOUR), "h");
}
function two(large, largeUnit, small, smallUnit) {
    return small === 0 ? `${large} ${largeUnit}` : `${large} ${largeUnit} ${small} ${smallUnit}`;
}
/** `12 s ago`, or `just now` below a second. */
export function ago(at, now) {
    return now - at < SECOND ? "just now" : `${duration(now - at)} ago`;
}
/** `in 12 s`, or `now` when the moment has come. */
export function until(at, now) {
    return at - now < SECOND ? "now" : `in ${duration(at - now)}`;
}
/** Local time of day. */
export function clock(at) {
    const time = new Date(at);
    return [time.getHours(), time.getMinutes(), time.getSeconds()]
        .map((part) => String(part).padStart(2, "0"))
        .join(":");
}
/** `0 B`, `999 B`, `1.5 KiB`, `12 MiB`. */
export function bytes(count) {
    const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let value = count;
    let unit = 0;
    while (value >= 1024 && unit < units.length - 1) {
        value /= 1024;
        unit += 1;
    }
    const digits = unit === 0 || value >= 10 ? 0 : 1;
    return `${value.toFixed(digits)} ${units[unit] ?? ""}`;
}
/** `1 watch`, `2 watches`. */
export function count(number, one, many) {
    return `${grouped(number)} ${number === 1 ? one : many}`;
}
/** Digits in groups of three, with a thin space that does not break. */
export function grouped(number) {
    return String(number).replace(/\B(?=(\d{3})+(?!\d))/g, "\u202f");
}
/** `850 µs`, `1.4 ms`, `38 ms`. */
export function roundTrip(microseconds) {
    if (microseconds < SECOND)
        return `${microseconds} µs`;
    const ms = microseconds / 1000;
    return `${ms.toFixed(ms < 10 ? 1 : 0)} ms`;
}
/** The first parts of a long hex digest, enough to compare by eye. */
export function digest(hex) {
    const start = hex.slice(0, 16).match(/.{1,4}/g);
    return start === null ? "" : `${start.join(" ")}${hex.length > 16 ? " …" : ""}`;
}
/** `kebab-case` as words. */
export function words(name) {
    return name.replace(/-/g, " ");
}
