"use strict";
(() => {
  const EVERY_MS = 2000, TIMEOUT_MS = 10000;
  const $ = (id) => document.getElementById(id);
  const pools = () => $("pools");
  const isField = (node) => /^(INPUT|SELECT|TEXTAREA)$/.test(node.tagName);
  const keyOf = (node) => node.dataset.key || node.dataset.pool;
  let timer = 0, asking = null;

  function toast(text, failed) {
    const one = document.createElement("p");
    one.className = failed ? "toast failed" : "toast";
    if (failed) one.setAttribute("role", "alert");
    one.textContent = text;
    $("toasts").append(one);
    setTimeout(() => one.remove(), failed ? 12000 : 4000);
  }

  function live(text, stale) {
    $("live").classList.toggle("stale", stale);
    if ($("live-text").textContent !== text) $("live-text").textContent = text;
  }

  // The pools, backends and cells in their order. While this stays the same, only the
  // contents of cells are replaced.
  const shape = (root) => Array.from(
    root.querySelectorAll("[data-key], [data-pool], [data-cell]"),
    (one) => keyOf(one) || one.dataset.cell,
  ).join("\n");

  function update(fresh) {
    const old = pools();
    old.dataset.csrf = fresh.dataset.csrf;
    if (shape(old) !== shape(fresh)) {
      old.replaceWith(fresh);
      return;
    }
    const before = old.querySelectorAll("[data-cell]");
    const after = fresh.querySelectorAll("[data-cell]");
    before.forEach((cell, index) => {
      const next = after[index];
      if (cell.dataset.cell === "change") updateForm(cell, next);
      else if (cell.innerHTML !== next.innerHTML || cell.title !== next.title) {
        cell.title = next.title;
        cell.replaceChildren(...next.childNodes);
        if (cell.dataset.cell === "status") {
          cell.classList.remove("changed");
          void cell.offsetWidth;
          cell.classList.add("changed");
        }
      }
    });
    const rows = fresh.querySelectorAll("[data-search]");
    old.querySelectorAll("[data-search]").forEach((row, index) => {
      row.dataset.search = rows[index].dataset.search;
    });
  }

  // A form is updated in place, never replaced: somebody may be filling it in.
  function updateForm(cell, next) {
    const buttons = next.querySelectorAll("button"), inputs = next.querySelectorAll("input");
    cell.querySelectorAll("button").forEach((button, index) => {
      const pressed = buttons[index].getAttribute("aria-pressed");
      if (pressed !== null) button.setAttribute("aria-pressed", pressed);
      button.hidden = buttons[index].hidden;
      const text = buttons[index].textContent;
      if (button.textContent !== text) button.textContent = text;
    });
    cell.querySelectorAll("input").forEach((input, index) => {
      const value = inputs[index].defaultValue;
      const untouched = input.type === "hidden"
        || (input.value === input.defaultValue && document.activeElement !== input);
      if (untouched && input.defaultValue !== value) input.value = input.defaultValue = value;
    });
  }

  function filter() {
    const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    pools().querySelectorAll("[data-search]").forEach((row) => {
      const fits = words.every((word) => row.dataset.search.includes(word));
      row.hidden = !fits;
      shown += fits;
    });
    pools().querySelectorAll("[data-pool]").forEach((pool) => {
      pool.hidden = words.length > 0 && !pool.querySelector("[data-search]:not([hidden])");
    });
    $("nothing").hidden = shown > 0 || !words.length;
  }

  async function refresh() {
    clearTimeout(timer);
    if (asking) asking.abort();
    const mine = asking = new AbortController();
    const timeout = setTimeout(() => mine.abort(), TIMEOUT_MS);
    try {
      const answer = await fetch("/balancer-manager/pools", {
        signal: mine.signal,
        cache: "no-store",
      });
      const text = await answer.text();
      if (!answer.ok) throw new Error(text.trim() || `the relay answered ${answer.status}`);
      const fresh = new DOMParser().parseFromString(text, "text/html").getElementById("pools");
      update(document.adoptNode(fresh));
      filter();
      live("live", false);
    } catch (error) {
      const unanswered = error instanceof TypeError || error.name === "AbortError";
      if (asking === mine) {
        live(unanswered ? "the relay does not answer; trying again" : error.message, true);
      }
    } finally {
      clearTimeout(timeout);
      if (asking === mine) {
        asking = null;
        if (!document.hidden) timer = setTimeout(refresh, EVERY_MS);
      }
    }
  }

  async function change(form, button) {
    const wanted = button.name === "mode"
      ? { mode: button.value }
      : { weight: Number(form.elements.weight.value) };
    const lasts = form.elements.duration_s ? Number(form.elements.duration_s.value) : 0;
    if (lasts && wanted.mode !== "none") wanted.duration_s = lasts;
    button.disabled = true;
    try {
      const answer = await fetch(form.getAttribute("action"), {
        method: "POST",
        headers: { "content-type": "application/json", "x-csrf-token": pools().dataset.csrf },
        body: JSON.stringify(wanted),
      });
      const reply = await answer.json();
      if (!reply.ok) throw new Error(reply.error);
      toast(`${reply.pool}/${reply.backend}: ${reply.now}`, false);
      if (reply.warning) toast(reply.warning, true);
      const details = form.closest("details");
      if (details) {
        form.reset();
        details.open = false;
        details.querySelector("summary").focus();
      }
    } catch (error) {
      const unanswered = error instanceof TypeError;
      toast(
        unanswered
          ? "the relay did not answer; check whether the change was made"
          : error.message,
        true,
      );
    } finally {
      button.disabled = false;
    }
    await refresh();
  }

  function closeForms(which) {
    document.querySelectorAll(".change details[open]").forEach((one) => {
      if (which(one)) one.open = false;
    });
  }

  document.addEventListener("submit", (event) => {
    event.preventDefault();
    change(event.target, event.submitter || event.target.querySelector("button"));
  });
  document.addEventListener("toggle", (event) => {
    if (event.target.open) closeForms((one) => one !== event.target);
  }, true);
  document.addEventListener("click", (event) => {
    closeForms((one) => !one.contains(event.target));
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      const open = document.querySelector(".change details[open]");
      if (open) {
        open.open = false;
        open.querySelector("summary").focus();
      }
    } else if (event.key === "/" && !isField(document.activeElement)) {
      event.preventDefault();
      $("filter").focus();
    }
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
  $("filter").addEventListener("input", filter);
  $("live").hidden = $("filter-box").hidden = false;
  filter();
  timer = setTimeout(refresh, EVERY_MS);
})();
