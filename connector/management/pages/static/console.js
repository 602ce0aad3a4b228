/* Conveniences only: every page works without this file. */
(() => {
  "use strict";
  const root = document.documentElement;
  const kept = (() => { try { return localStorage.getItem("hanse-theme"); } catch { return null; } })();
  if (kept === "light" || kept === "dark") root.dataset.theme = kept;

  const isDark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;

  const themeSwitch = () => {
    const button = document.querySelector("[data-switch-theme]");
    if (!button) return;
    button.hidden = false;
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      try { localStorage.setItem("hanse-theme", root.dataset.theme); } catch { /* private mode: for this page only */ }
    });
  };

  const copyButtons = () => {
    if (!navigator.clipboard) return;
    for (const snippet of document.querySelectorAll(".snippet")) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "copy";
      button.textContent = "Copy";
      button.addEventListener("click", async () => {
        await navigator.clipboard.writeText(snippet.querySelector("pre").textContent);
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = "Copy"; }, 1500);
      });
      snippet.append(button);
    }
  };

  const rowFilters = () => {
    for (const input of document.querySelectorAll("input[data-filters]")) {
      const rows = [...document.querySelectorAll(`#${input.dataset.filters} tbody tr`)];
      input.hidden = rows.length < 8;
      input.addEventListener("input", () => {
        const wanted = input.value.trim().toLowerCase();
        for (const row of rows) row.hidden = wanted !== "" && !row.textContent.toLowerCase().includes(wanted);
      });
    }
  };

  const searchKey = () => {
    const box = document.querySelector("input[type=search][name=q]");
    if (!box) return;
    document.addEventListener("keydown", (event) => {
      const typing = /^(input|textarea|select)$/i.test(event.target.tagName);
      if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
        event.preventDefault();
        box.focus();
        box.select();
      }
    });
  };

  const facetFolding = () => {
    if (!matchMedia("(max-width: 60rem)").matches) return;
    for (const details of document.querySelectorAll(".all-filters")) details.open = false;
  };

  const confirmations = () => {
    for (const form of document.querySelectorAll("form[data-confirm]")) {
      form.addEventListener("submit", (event) => {
        if (!confirm(form.dataset.confirm)) event.preventDefault();
      });
    }
  };

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
    themeSwitch();
    copyButtons();
    rowFilters();
    searchKey();
    facetFolding();
    confirmations();
  });
})();
