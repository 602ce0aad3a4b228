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

  /* Names of the agreed tables and columns, and SQL's own words, offered for the word before the caret. */
  const completion = () => {
    const text = document.querySelector("[data-sql]");
    if (!text) return;
    const words = "SELECT FROM WHERE GROUP BY ORDER BY HAVING LIMIT JOIN LEFT JOIN ON AND OR NOT IN EXISTS BETWEEN LIKE DISTINCT count sum avg min max".split(" ");
    const names = new Set([...document.querySelectorAll("[data-insert]")].map((one) => one.dataset.insert));
    const list = document.createElement("ul");
    list.className = "completions";
    list.id = "completions";
    list.hidden = true;
    list.setAttribute("role", "listbox");
    list.setAttribute("aria-label", "Completions; Tab takes one, the arrow keys choose");
    text.setAttribute("aria-controls", list.id);
    text.after(list);
    let found = [];
    let chosen = 0;
    const wordBefore = () => /[\w".]+$/.exec(text.value.slice(0, text.selectionStart))?.[0] ?? "";
    const fits = (name, typed) => [name, name.replaceAll('"', ""), name.split(".").pop()]
      .some((one) => one.toLowerCase().startsWith(typed.toLowerCase()));
    const draw = () => {
      list.replaceChildren(...found.map((name, number) => {
        const item = document.createElement("li");
        item.textContent = name;
        item.setAttribute("role", "option");
        item.setAttribute("aria-selected", String(number === chosen));
        item.addEventListener("mousedown", (event) => { event.preventDefault(); take(name); });
        return item;
      }));
      list.hidden = found.length === 0;
    };
    const look = () => {
      const typed = wordBefore();
      const column = /\w\.(\w*)$/.exec(typed); /* after an alias: columns only */
      const part = column ? column[1] : typed;
      found = typed === "" || (!column && typed.length < 2) ? [] : [...names, ...words]
        .filter((name) => fits(name, part) && name !== part && !(column && name.includes(".")))
        .slice(0, 12);
      chosen = 0;
      draw();
    };
    const take = (name) => {
      const typed = wordBefore();
      const column = /\w\.(\w*)$/.exec(typed);
      const start = text.selectionStart - (column ? column[1] : typed).length;
      text.setRangeText(name, start, text.selectionStart, "end");
      found = [];
      draw();
      text.focus();
    };
    text.addEventListener("input", look);
    text.addEventListener("blur", () => { found = []; draw(); });
    text.addEventListener("keydown", (event) => {
      if (found.length === 0 || event.ctrlKey || event.metaKey) return;
      if (event.key === "Tab") take(found[chosen]);
      else if (event.key === "Escape") { found = []; draw(); }
      else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        chosen = (chosen + (event.key === "ArrowDown" ? 1 : found.length - 1)) % found.length;
        draw();
      } else return;
      event.preventDefault();
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

  /* On a narrow screen the names of the pages are one row that scrolls: the one that is open is to be seen. */
  const openPage = () => {
    const link = document.querySelector(".tabs [aria-current]");
    if (!link) return;
    const row = link.parentElement;
    row.scrollLeft = link.offsetLeft - row.offsetLeft - (row.clientWidth - link.offsetWidth) / 2;
  };

  document.addEventListener("DOMContentLoaded", () => {
    openPage();
    liveMeaning();
    insertions();
    completion();
    busyForms();
    refreshing();
  });
})();
