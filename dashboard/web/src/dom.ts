// A tree of plain values, and the one function that makes the document equal to it.
//
// render.ts returns such trees, so it can be tested without a browser; `patch` changes only what differs, so that
// focus, selection and scroll positions live through an update.

export interface Element_ {
  tag: string;
  attributes: Record<string, string>;
  children: Node_[];
}
export type Node_ = Element_ | string;
export type Child = Node_ | null | false | Child[];

const SVG = "http://www.w3.org/2000/svg";

/** Makes an element. Children that are `null` or `false` are left out, lists are flattened. */
export function h(tag: string, attributes: Record<string, string | number | boolean>, ...children: Child[]): Element_ {
  const kept: Record<string, string> = {};
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false) kept[name] = value === true ? "" : String(value);
  }
  return { tag, attributes: kept, children: flat(children) };
}

function flat(children: Child[]): Node_[] {
  return children.flatMap((child) => {
    if (Array.isArray(child)) return flat(child);
    return child === null || child === false ? [] : [child];
  });
}

/** All text of a tree, for tests and announcements. */
export function text(node: Node_): string {
  return typeof node === "string" ? node : node.children.map(text).join("");
}

/** Makes the children of `parent` equal to `nodes`. */
export function patch(parent: Element, nodes: Node_[], namespace: string | null = null): void {
  nodes.forEach((node, at) => {
    const existing = parent.childNodes[at];
    if (existing === undefined) {
      parent.append(create(node, namespace));
    } else if (typeof node === "string") {
      if (existing.nodeType !== 3) existing.replaceWith(node);
      else if (existing.nodeValue !== node) existing.nodeValue = node;
    } else if (existing instanceof Element && fits(existing, node)) {
      update(existing, node, namespace);
    } else {
      existing.replaceWith(create(node, namespace));
    }
  });
  while (parent.childNodes.length > nodes.length) parent.lastChild?.remove();
}

// A row keeps its element only while it speaks of the same thing.
function fits(existing: Element, node: Element_): boolean {
  return existing.localName === node.tag && existing.getAttribute("data-key") === (node.attributes["data-key"] ?? null);
}

function create(node: Node_, namespace: string | null): Node {
  if (typeof node === "string") return document.createTextNode(node);
  const inner = node.tag === "svg" ? SVG : namespace;
  const element = inner === null ? document.createElement(node.tag) : document.createElementNS(inner, node.tag);
  update(element, node, namespace);
  return element;
}

function update(element: Element, node: Element_, namespace: string | null): void {
  for (const name of element.getAttributeNames()) {
    if (!(name in node.attributes) && name !== "open") element.removeAttribute(name);
  }
  for (const [name, value] of Object.entries(node.attributes)) {
    if (element.getAttribute(name) !== value) element.setAttribute(name, value);
  }
  patch(element, node.children, node.tag === "svg" ? SVG : namespace);
}
