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
    const words = { copy: "Copy", copied: "Copied", ...document.body.dataset };
    for (const snippet of document.querySelectorAll(".snippet, .copyable")) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "copy";
      button.textContent = words.copy;
      if (snippet.dataset.what) button.setAttribute("aria-label", `${words.copy} ${snippet.dataset.what}`);
      button.addEventListener("click", async () => {
        await navigator.clipboard.writeText(snippet.querySelector("pre, code").textContent);
        button.textContent = words.copied;
        setTimeout(() => { button.textContent = words.copy; }, 1500);
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

  /* Completes what is typed: the newest answer fills the list, and a question that is overtaken is given up. */
  const suggestions = () => {
    const box = document.querySelector("input[data-suggestions]");
    if (!box || !box.list) return;
    let timer = 0;
    let asking = null;
    const ask = async () => {
      if (asking) asking.abort();
      asking = new AbortController();
      const fields = new URLSearchParams(new FormData(box.form));
      fields.delete("sort");
      try {
        const answer = await fetch(`${box.dataset.suggestions}?${fields}`, { signal: asking.signal });
        if (!answer.ok) return;
        const found = (await answer.json()).suggestions;
        box.list.replaceChildren(...found.map((one) => {
          const option = document.createElement("option");
          option.value = one.text;
          option.label = one.kind;
          return option;
        }));
      } catch { /* overtaken, or no connection: the search works without */ }
    };
    box.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(ask, 150);
    });
  };

  const facetFolding = () => {
    if (!matchMedia("(max-width: 60rem)").matches) return;
    for (const details of document.querySelectorAll(".all-filters")) details.open = false;
  };

  /* What was sent is not sent again by a second click; after a while it may be, as it may have failed. Soon where that
     only asks (`data-again`): its answer may be a file, or have been stopped, and this page stays. */
  const sentOnce = () => {
    for (const form of document.querySelectorAll("form[method=post]")) {
      const rest = "again" in form.dataset ? 1_000 : 10_000;
      let until = 0;
      let button = null;
      form.addEventListener("submit", (event) => {
        if (event.defaultPrevented) return;
        if (Date.now() < until && event.submitter === button) event.preventDefault();
        else [until, button] = [Date.now() + rest, event.submitter];
      });
      addEventListener("pageshow", () => { until = 0; });
    }
  };

  document.addEventListener("DOMContentLoaded", () => {
    themeSwitch();
    copyButtons();
    rowFilters();
    searchKey();
    suggestions();
    facetFolding();
    sentOnce();
  });
})();
