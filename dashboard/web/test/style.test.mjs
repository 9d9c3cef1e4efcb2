import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

const css = readFileSync(new URL("../dist/style.css", import.meta.url), "utf8");
const [light, dark] = css.split("@media (prefers-color-scheme: dark)").map((part) =>
  Object.fromEntries([...part.slice(0, part.indexOf("}")).matchAll(/--([a-z-]+): (#[0-9a-f]{6});/g)].map(([, name, value]) => [name, value])));

// Relative luminance and contrast as WCAG 2 defines them.
const channel = (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
const luminance = (hex) => {
  const [r, g, b] = [1, 3, 5].map((at) => channel(parseInt(hex.slice(at, at + 2), 16) / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (a, b) => {
  const [bright, dim] = [luminance(a), luminance(b)].sort((x, y) => y - x);
  return (bright + 0.05) / (dim + 0.05);
};

const PAIRS = [
  ["ink", "ground"], ["ink", "sheet"], ["soft", "ground"], ["soft", "sheet"], ["accent", "sheet"], ["on-accent", "accent"],
  ["ink", "bad-wash"], ["bad", "sheet"], ["unknown", "sheet"], ["good", "ground"], ["good", "sheet"],
  ...["good", "bad", "unknown", "idle"].map((tone) => [tone, `${tone}-wash`]),
];

for (const [name, palette] of Object.entries({ light, dark })) {
  test(`text can be read in the ${name} palette`, () => {
    assert.ok(Object.keys(palette).length >= 15, JSON.stringify(palette));
    for (const [text, ground] of PAIRS) {
      const ratio = contrast(palette[text], palette[ground]);
      assert.ok(ratio >= 4.5, `--${text} on --${ground}: ${ratio.toFixed(2)}`);
    }
  });
}
