/* Conveniences of the console only; hanse.js has those of every page. Every page works without this file. */
(() => {
  "use strict";

  /* What an offer means, while it is being written. */
  const liveMeaning = () => {
    const form = document.querySelector("form[data-checks]");
    if (!form) return;
    const checks = form.getAttribute("data-checks"); /* `form.dataset` is the field of that name */
    const text = form.querySelector("[data-form]");
    const target = form.querySelector("[data-meaning]");
    const publish = form.querySelector("[data-publish]");
    let waiting = 0;
    let number = 0;
    const check = async () => {
      const mine = ++number;
      const said = new URLSearchParams({ form: text.value, dataset: form.elements.dataset.value });
      try {
        const answer = await fetch(checks, { method: "POST", body: said });
        if (!answer.ok || answer.redirected || mine !== number) return;
        target.innerHTML = await answer.text(); /* our own page, escaped by its template */
        publish.disabled = !target.querySelector(".notice.good");
      } catch { /* the buttons still work */ }
    };
    const soon = () => { clearTimeout(waiting); waiting = setTimeout(check, 350); };
    text.addEventListener("input", soon);
    form.elements.dataset.addEventListener("change", soon);
  };

  /* Names beside the editor go to where the caret is. */
  const insertions = () => {
    const text = document.querySelector("[data-sql]");
    if (!text) return;
    for (const button of document.querySelectorAll("[data-insert]")) {
      button.addEventListener("click", (event) => {
        event.preventDefault();
        text.setRangeText(button.dataset.insert, text.selectionStart, text.selectionEnd, "end");
        text.focus();
      });
    }
    text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) text.form.requestSubmit(text.form.querySelector("[value=run]"));
    });
  };

  const busyForms = () => {
    for (const form of document.querySelectorAll("form[data-busy]")) {
      form.addEventListener("submit", () => form.classList.add("working"));
    }
  };

  const refreshing = () => {
    const link = document.querySelector("[data-refresh]");
    if (link) setTimeout(() => location.assign(link.href), 1000 * Number(link.dataset.refresh));
  };

  document.addEventListener("DOMContentLoaded", () => {
    liveMeaning();
    insertions();
    busyForms();
    refreshing();
  });
})();
