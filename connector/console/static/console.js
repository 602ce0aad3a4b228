/* Conveniences of the console only; hanse.js has those of every page. Every page works without this file. */
(() => {
  "use strict";

  /* An offer while it is being written: its fields, its YAML and its meaning follow each other. The server decides what
     was changed; here only the parts of its answer are put in place, and never over what is being typed. */
  const offerEditor = () => {
    const form = document.querySelector("form[data-editor]");
    if (!form) return;
    const part = (root, name) => root.querySelector(`[data-part=${name}]`);
    const where = form.getAttribute("data-editor"); /* `form.dataset` is the field of that name */
    const yaml = form.querySelector("[data-yaml]");
    const publish = form.querySelector("[data-publish]");
    let waiting = 0;
    let number = 0;
    const put = (answer) => {
      const fresh = new DOMParser().parseFromString(answer, "text/html"); /* our own page, escaped by its template */
      part(form, "meaning").innerHTML = part(fresh, "meaning").innerHTML;
      const text = fresh.querySelector("[data-yaml]").value;
      if (yaml.value.trim() !== text.trim()) yaml.value = text;
      form.querySelector("[data-before]").value = yaml.value;
      publish.disabled = !part(form, "meaning").querySelector(".notice.good");
      putFields(part(form, "fields"), part(fresh, "fields"));
    };
    const putFields = (old, fresh) => {
      const typing = old.contains(document.activeElement);
      if (old.dataset.shape === fresh.dataset.shape && typing) {
        for (const one of fresh.querySelectorAll("[data-problem]")) {
          old.querySelector(`[data-problem="${one.dataset.problem}"]`)?.replaceChildren(...one.childNodes);
        }
        return;
      }
      const { name, value } = document.activeElement;
      const top = old.querySelector(".table-scroll")?.scrollTop ?? 0;
      old.replaceWith(document.adoptNode(fresh));
      if (fresh.querySelector(".table-scroll")) fresh.querySelector(".table-scroll").scrollTop = top;
      if (typing && name) {
        const same = [...fresh.querySelectorAll(`[name="${CSS.escape(name)}"]`)];
        (same.find((one) => one.value === value) ?? same[0])?.focus();
      }
    };
    const check = async () => {
      const mine = ++number;
      const said = new URLSearchParams(new FormData(form));
      try {
        const answer = await fetch(where, { method: "POST", body: said });
        if (!answer.ok || answer.redirected) return;
        const text = await answer.text();
        if (mine === number) put(text);
      } catch { /* the buttons still work */ }
    };
    const soon = (event) => {
      if (event.target.closest("[aria-labelledby=try]") || event.isComposing) return;
      ++number; /* an answer under way is about an older state */
      clearTimeout(waiting);
      waiting = setTimeout(check, 300);
    };
    form.addEventListener("input", soon);
    form.addEventListener("change", soon);
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
    offerEditor();
    insertions();
    completion();
    busyForms();
    refreshing();
  });
})();
