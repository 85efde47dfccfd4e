// The account pages work without this: it adds showing a password, early messages, and one submit per click.

for (const warning of document.querySelectorAll("[data-insecure-warning]")) {
  warning.hidden = window.isSecureContext;
}

for (const button of document.querySelectorAll("[data-reveal]")) {
  const input = document.getElementById(button.dataset.reveal);
  button.hidden = false;
  button.addEventListener("click", () => {
    const show = input.type === "password";
    input.type = show ? "text" : "password";
    button.setAttribute("aria-pressed", String(show));
    button.setAttribute("aria-label", show ? "Hide password" : "Show password");
    button.querySelector("i").className = show ? "fa fa-eye-slash" : "fa fa-eye";
  });
}

function problem(input) {
  const other = input.dataset.sameAs && document.getElementById(input.dataset.sameAs);
  if (other && input.value && input.value !== other.value) return "The two passwords differ.";
  if (!other && input.value && input.value.length < input.minLength) {
    return `Use at least ${input.minLength} characters; this has ${input.value.length}.`;
  }
  return "";
}

function show(input) {
  const text = problem(input);
  const line = document.getElementById(`${input.id}_problem`);
  input.setCustomValidity(text);
  input.classList.toggle("is-invalid", Boolean(text));
  line.textContent = text;
}

const checked = [...document.querySelectorAll("input[data-same-as], input[minlength]")];
for (const input of checked) {
  // The first message waits until the field is left, so nobody is corrected in the middle of a word.
  input.addEventListener("blur", () => {
    if (input.value) input.dataset.touched = "yes";
    if (input.dataset.touched) show(input);
  });
  input.addEventListener("input", () => {
    for (const each of checked) if (each.dataset.touched) show(each);
  });
}

for (const form of document.querySelectorAll("form[data-once]")) {
  form.addEventListener("submit", (event) => {
    const wrong = checked.filter((input) => form.contains(input) && problem(input));
    if (wrong.length) {
      event.preventDefault();
      for (const input of wrong) {
        input.dataset.touched = "yes";
        show(input);
      }
      wrong[0].focus();
      return;
    }
    for (const button of form.querySelectorAll("[type=submit]")) button.disabled = true;
  });
}

// A page restored by the Back button must not keep its button disabled.
window.addEventListener("pageshow", () => {
  for (const button of document.querySelectorAll("form[data-once] [type=submit]")) button.disabled = false;
});
