/* Elements are made and changed here. Text goes in as text only, so no task can bring HTML along. */

/** The element of this page with that id. */
export const byId = (id) => document.getElementById(id);

/** A new element: attributes (null: left out; on…: a listener), then children (texts, elements, null: left out). */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Change an element's text, if it is another: the browser lays out nothing for what stayed. */
export function setText(node, text) {
  if (node.firstChild === null || node.firstChild.nodeType !== Node.TEXT_NODE || node.childNodes.length !== 1) {
    if (node.textContent !== text) node.textContent = text;
  } else if (node.firstChild.data !== text) {
    node.firstChild.data = text;
  }
}

/** Change an attribute, if it is another; null takes it away. */
export function setAttribute(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}
