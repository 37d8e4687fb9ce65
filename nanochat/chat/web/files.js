// Conversations as files: all of them as JSON, the open one as Markdown, and back.

import { save } from "./api.js";
import * as conversations from "./conversations.js";
import { byId } from "./dom.js";
import { t } from "./i18n.js";
import { announce } from "./notices.js";

/** Let the buttons of the settings work. `current()` is the open conversation; `imported()` is called after an import. */
export function setUpFiles(current, imported) {
  const day = () => new Date().toISOString().slice(0, 10);
  byId("export-json").addEventListener("click", () => save(`nanochat-${day()}.json`, new Blob([conversations.exportJson()], { type: "application/json" })));
  byId("export-markdown").addEventListener("click", () => {
    const name = current().title.replace(/[^\p{L}\p{N} _-]/gu, "").trim() || "conversation";
    save(`${name}.md`, new Blob([conversations.exportMarkdown(current(), t("you"))], { type: "text/markdown" }));
  });
  byId("import-json").addEventListener("click", () => byId("import-file").click());
  byId("import-file").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (!file) return;
    let said;
    try {
      said = t("imported", conversations.importJson(await file.text()));
      imported();
    } catch {
      said = t("import_failed");
    }
    byId("import-json").textContent = said;
    announce(said);
  });
}
