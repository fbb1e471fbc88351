// Before the first paint: the theme that the reader has chosen in Airflow, which keeps it under the name "theme".
(() => {
  const stored = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const paint = () => {
    const theme = (stored("theme") || "system").replace(/"/g, "");
    document.documentElement.classList.toggle("dark", theme === "dark" || (theme !== "light" && system.matches));
  };
  paint();
  system.addEventListener("change", paint);
  addEventListener("storage", paint);

  // The server writes times in UTC. Airflow keeps the time zone that the reader has chosen under "timezone".
  addEventListener("DOMContentLoaded", () => {
    const chosen = (stored("timezone") || "").replace(/"/g, "");
    const how = { year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
    let format;
    try {
      format = new Intl.DateTimeFormat("en-CA", { ...how, timeZone: chosen || undefined });
    } catch {
      format = new Intl.DateTimeFormat("en-CA", how);
    }
    document.getElementById("zone").textContent = format.resolvedOptions().timeZone;
    for (const time of document.querySelectorAll("time")) {
      time.textContent = format.format(new Date(time.dateTime)).replace(",", "");
    }
    // One check for one press.
    for (const form of document.querySelectorAll("form[method=post]")) {
      form.addEventListener("submit", () => {
        const button = form.querySelector("button");
        button.textContent = "Asking BankConnect …";
        setTimeout(() => { button.disabled = true; });
      });
    }
    // The browser may show this page again, as it was, when the reader goes back.
    addEventListener("pageshow", (event) => { if (event.persisted && !document.getElementById("verdict")) location.reload(); });
  });
})();
