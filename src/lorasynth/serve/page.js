// What screen readers say of Gradio's fields for files.
function relabel() {
  for (const field of document.querySelectorAll(".upload-container")) {
    const written = field.innerText.trim();
    if (written) field.removeAttribute("aria-label");  // its name is what is written in it
    else if (!field.ariaLabel) field.ariaLabel = "Add a file";
    const outer = field.parentElement.closest("button");
    if (outer && outer.role !== "group") {  // a button in a button: the inner one is the one
      outer.role = "group";
      outer.tabIndex = -1;
    }
  }
}
new MutationObserver(relabel).observe(document, { subtree: true, childList: true });

// Enter presses them, as Space does: when the key goes up, or else no window opens.
for (const event of ["keydown", "keyup"]) {
  document.addEventListener(event, (pressed) => {
    if (pressed.key !== "Enter" || !pressed.target.matches(".upload-container")) return;
    pressed.preventDefault();
    if (event === "keyup") pressed.target.click();
  }, true);
}
