// Small helpers over the DOM. Text always goes through text nodes: what a database holds is never markup.

/** Make an element. `attributes`: class and other attributes as strings; children: nodes or values shown as text. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : String(child));
  }
  return node;
}

/** Set the text of a node only when it differs, so that selections and screen readers are left alone. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * Make the children of `container` show `items`, in order. A child is made anew only when its item changed;
 * `carry(old, fresh)` may hand over state (an opened row) from the child that goes.
 */
export function sync(container, items, keyOf, make, carry = () => {}) {
  const known = new Map([...container.children].map((child) => [child.dataset.key, child]));
  let place = container.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    const signature = JSON.stringify(item);
    let child = known.get(key);
    known.delete(key);
    if (!child || child.signature !== signature) {
      const fresh = make(item);
      fresh.dataset.key = key;
      fresh.signature = signature;
      if (child) {
        carry(child, fresh);
        if (child === place) place = fresh;
        child.replaceWith(fresh);
      }
      child = fresh;
    }
    if (child === place) place = child.nextElementSibling;
    else container.insertBefore(child, place);
  }
  for (const gone of known.values()) gone.remove();
}
