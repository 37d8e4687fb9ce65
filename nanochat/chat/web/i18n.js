// The page's texts in English and in Traditional Chinese as spoken in Taiwan.

const plural = (count, one, many) => `${count} ${count === 1 ? one : many}`;

const EN = {
  skip: "Skip to the message",
  conversations: "Conversations",
  conversation: "Conversation",
  new_chat: "New chat",
  training: "Training",
  settings: "Settings",
  other_language: "繁體中文",
  shortcuts: "Keyboard shortcuts",
  open_menu: "Open the menu",
  close_menu: "Close the menu",
  close: "Close",
  done: "Done",
  cancel: "Cancel",
  theme: (name) => `Colours: ${{ auto: "as the system", light: "light", dark: "dark" }[name]}`,
  message: "Message",
  placeholder: "Ask something",
  placeholder_base: "Begin a text; the model continues it",
  placeholder_none: "There is no model yet",
  small_print: "A small model that was trained here. It makes mistakes.",
  send: "Send",
  stop: "Stop",
  to_end: "To the newest message",
  you: "You",
  rename: "Rename",
  title_label: "Title of the conversation",
  delete: "Delete",
  deleted: (title) => `“${title}” was deleted.`,
  undo: "Undo",
  edited: (count) => `${plural(count, "message", "messages")} below your edit removed.`,
  untitled: "New chat",
  no_conversations: "Your conversations appear here. They stay in this browser.",
  copy_message: "Copy the message",
  copy_code: "Copy the code",
  copied: "Copied",
  edit: "Edit",
  edit_label: "Edit your message",
  edit_send: "Send again",
  again: "Answer again",
  thinking: "Answering…",
  answered: (text) => `Answer: ${text}`,
  stopped: "Stopped",
  cut: "The answer reached its longest length.",
  empty_answer: "The model ended its answer at once, without a word.",
  task_done: "Done",
  task_open: "Not done",
  calculator: (expression, result) => `Calculator: ${expression} = ${result}`,
  no_result: "no result",
  forgotten: (turns, context) =>
    `The oldest ${turns === 1 ? "turn no longer fits" : `${turns} turns no longer fit`} the model's ${context ? `${context} tokens` : "memory"}: it does not see what is above.`,
  welcome: "What shall we talk about?",
  welcome_base: "This model continues text",
  welcome_base_text: "It has read, but it was not taught to converse. Begin a sentence, and it writes on.",
  try_these: "Try one of these",
  suggestions: ["What is 12 + 34?", "Who are you?", "Tell me the capital of Austria.", "你是誰？"],
  suggestions_base: ["Once upon a time", "The sky is", "One, two, three,"],
  base_note: "This model continues text: it was not taught to converse.",
  trial: "trial",
  trial_note: "A trial's model: a few minutes of training show that everything works. Its answers are not meant to make sense.",
  model_label: (model) => `Model ${model.run}: ${stageName(EN, model.stage)}, step ${model.step}, on the ${model.device === "cuda" ? "GPU" : "CPU"}`,
  model_name: ({ run, stage, step }) => `${run}, ${stage} step ${step}`,
  swapped: (name) => `From here on, another checkpoint answers: ${name}`,
  no_model: "There is no model yet",
  no_model_text: "Train one on this machine, then come back: this page notices by itself.",
  no_model_training: "Your model is being trained. As soon as its first checkpoint is saved, you can talk to it here.",
  model_so_far: "You can talk to its newest checkpoint while it goes on learning.",
  talk: "Talk to it",
  copy_command: "Copy the command",
  stages: { base: "pretraining", sft: "fine-tuning", rl: "reinforcement" },
  no_training: "No training is running",
  no_training_text: "While a model trains on this machine, its progress shows here.",
  training_stopped: "The training has stopped. The same command goes on from its last checkpoint.",
  pill: (percent) => `Training ${percent}%`,
  step: "Step",
  step_of: (step, steps) => `Step ${step} of ${steps}`,
  of: (steps) => ` of ${steps}`,
  loss: "Loss",
  bpb: "Bits per byte",
  speed: "Tokens/s",
  left: "Time left",
  loss_curve: "Loss",
  loss_curve_label: (first, last, steps) => `Loss over ${steps} steps: from ${first} to ${last}`,
  reward: "Reward",
  reward_curve: "Mean reward of the answers",
  reward_curve_label: (first, last, steps) => `Mean reward over ${steps} steps: from ${first} to ${last}`,
  samples: "What it says so far",
  no_samples: "The first sample comes with the next evaluation.",
  seconds: (count) => `${count} s`,
  minutes: (count) => `${count} min`,
  hours: (count, rest) => `${count} h ${rest} min`,
  temperature: "Temperature",
  temperature_hint: "0 always takes the likeliest word; higher is more varied.",
  top_p: "Top-p",
  top_p_hint: "Only the likeliest words that together have this probability; 1 is all.",
  top_k: "Top-k",
  top_k_hint: "Only this many of the likeliest words; 0 is all.",
  max_tokens: "Longest answer",
  max_tokens_hint: "In tokens, which are pieces of words.",
  seed: "Seed",
  seed_hint: "The same number gives the same answer again; empty is a new one each time.",
  system: "System message",
  system_hint: "Said to the model before the conversation.",
  reset: "Reset",
  invalid: (low, high) => `A number from ${low} to ${high}`,
  key_title: "This server asks for a key",
  key_text: "Whoever started it has set an API key. It is kept until you close this tab.",
  key_wrong: "The server did not accept that key.",
  key_label: "API key",
  key_use: "Use it",
  key_enter: "Enter it",
  retry: "Try again",
  error_network: "The server does not answer. Is it still running?",
  error_broken: "The connection broke off in the middle of the answer.",
  error_key: "The server asks for a key.",
  error_too_long: (context) => `This is too long for the model${context ? `, which reads ${context} tokens` : ""}. Shorten your message.`,
  error_busy: (seconds) => (seconds ? `The server is busy. Trying again in ${seconds} s.` : "The server is busy. Try again in a moment."),
  error_draining: (seconds) => (seconds ? `The server is restarting. Trying again in ${seconds} s.` : "The server is restarting. Try again in a moment."),
  error_not_ready: "The model is not ready yet.",
  error_other: (message) => `The server says: ${message}`,
  offline: "The server does not answer. Trying again…",
  storage_full: "The browser's storage is full, so this conversation is not kept. Delete some to make room.",
  storage_none: "This browser keeps nothing for this page: conversations are lost when it is closed.",
  keys: [
    ["Enter", "Send"],
    ["Shift Enter", "New line"],
    ["Esc", "Stop the answer"],
    ["↑", "In an empty message: edit your last one"],
    ["/", "To the message"],
    ["Ctrl Shift O", "New chat"],
    ["?", "This list"],
  ],
};

const ZH = {
  skip: "跳到訊息欄",
  conversations: "對話紀錄",
  conversation: "對話",
  new_chat: "開新對話",
  training: "訓練",
  settings: "設定",
  other_language: "English",
  shortcuts: "鍵盤快速鍵",
  open_menu: "開啟選單",
  close_menu: "關閉選單",
  close: "關閉",
  done: "完成",
  cancel: "取消",
  theme: (name) => `配色：${{ auto: "跟隨系統", light: "淺色", dark: "深色" }[name]}`,
  message: "訊息",
  placeholder: "想問什麼？",
  placeholder_base: "起個頭，模型會接著寫",
  placeholder_none: "還沒有模型",
  small_print: "這是在這台電腦上訓練的小模型，答案可能有錯。",
  send: "傳送",
  stop: "停止",
  to_end: "跳到最新訊息",
  you: "你",
  rename: "重新命名",
  title_label: "對話名稱",
  delete: "刪除",
  deleted: (title) => `已刪除「${title}」。`,
  undo: "復原",
  edited: (count) => `已移除修改處之後的 ${count} 則訊息。`,
  untitled: "新對話",
  no_conversations: "對話會列在這裡，只存在這個瀏覽器裡。",
  copy_message: "複製訊息",
  copy_code: "複製程式碼",
  copied: "已複製",
  edit: "編輯",
  edit_label: "編輯你的訊息",
  edit_send: "重新送出",
  again: "重新回答",
  thinking: "回答中…",
  answered: (text) => `回答：${text}`,
  stopped: "已停止",
  cut: "回答已達長度上限。",
  empty_answer: "模型沒有回答任何內容就結束了。",
  task_done: "已完成",
  task_open: "未完成",
  calculator: (expression, result) => `計算機：${expression} = ${result}`,
  no_result: "算不出來",
  forgotten: (turns, context) => `最早的 ${turns} 輪對話已超出模型${context ? `能讀的 ${context} 個 token` : "的記憶"}，以上內容它看不到了。`,
  welcome: "今天想聊什麼？",
  welcome_base: "這個模型會接著寫",
  welcome_base_text: "它讀過許多文字，但還沒學過對話。你起個頭，它就會往下寫。",
  try_these: "試試看",
  suggestions: ["你是誰？", "What is 12 + 34?", "Who are you?", "Spell the word former."],
  suggestions_base: ["Once upon a time", "從前從前", "The sky is"],
  base_note: "這個模型只會接續文字，還沒學過對話。",
  trial: "試跑",
  trial_note: "這是試跑的模型：只訓練幾分鐘，用來確認每個階段都能正常執行，答非所問是正常的。",
  model_label: (model) => `模型 ${model.run}：${stageName(ZH, model.stage)}，第 ${model.step} 步，在 ${model.device === "cuda" ? "GPU" : "CPU"} 上執行`,
  model_name: ({ run, stage, step }) => `${run}，${stage}第 ${step} 步`,
  swapped: (name) => `以下改由另一個檢查點回答：${name}`,
  no_model: "還沒有模型",
  no_model_text: "先在這台電腦上訓練一個模型，完成後這個頁面會自動更新。",
  no_model_training: "模型正在訓練。存好第一個檢查點之後，就能在這裡跟它聊天。",
  model_so_far: "訓練還在進行，現在就能跟最新的檢查點聊天。",
  talk: "跟它聊聊",
  copy_command: "複製指令",
  stages: { base: "預訓練", sft: "微調", rl: "強化學習" },
  no_training: "目前沒有訓練在進行",
  no_training_text: "這台電腦訓練模型時，進度會顯示在這裡。",
  training_stopped: "訓練已停止。再執行同一個指令，就會從最後的檢查點接續。",
  pill: (percent) => `訓練中 ${percent}%`,
  step: "步數",
  step_of: (step, steps) => `第 ${step} 步，共 ${steps} 步`,
  of: (steps) => `／${steps}`,
  loss: "Loss",
  bpb: "每位元組位元數",
  speed: "token／秒",
  left: "剩餘時間",
  loss_curve: "Loss 曲線",
  loss_curve_label: (first, last, steps) => `${steps} 步的 loss：從 ${first} 到 ${last}`,
  reward: "獎勵",
  reward_curve: "回答的平均獎勵",
  reward_curve_label: (first, last, steps) => `${steps} 步的平均獎勵：從 ${first} 到 ${last}`,
  samples: "它目前會說的話",
  no_samples: "下一次評估時會有第一個範例。",
  seconds: (count) => `${count} 秒`,
  minutes: (count) => `${count} 分鐘`,
  hours: (count, rest) => `${count} 小時 ${rest} 分`,
  temperature: "溫度",
  temperature_hint: "0 每次都選最可能的字；越高，變化越多。",
  top_p: "Top-p",
  top_p_hint: "只從機率加總達到此值的字裡挑；1 代表全部。",
  top_k: "Top-k",
  top_k_hint: "只從最可能的這幾個字裡挑；0 代表全部。",
  max_tokens: "回答長度上限",
  max_tokens_hint: "以 token 計，一個 token 是一小段文字。",
  seed: "隨機種子",
  seed_hint: "同一個數字會得到同樣的回答；留空則每次不同。",
  system: "系統訊息",
  system_hint: "對話開始前先告訴模型的話。",
  reset: "恢復預設值",
  invalid: (low, high) => `請輸入 ${low} 到 ${high} 的數字`,
  key_title: "這個伺服器需要金鑰",
  key_text: "啟動伺服器的人設了 API 金鑰。金鑰只保留到你關閉這個分頁為止。",
  key_wrong: "伺服器不接受這把金鑰。",
  key_label: "API 金鑰",
  key_use: "使用",
  key_enter: "輸入金鑰",
  retry: "再試一次",
  error_network: "伺服器沒有回應。請確認它還在執行。",
  error_broken: "回答到一半，連線中斷了。",
  error_key: "伺服器需要金鑰。",
  error_too_long: (context) => `訊息太長${context ? `，模型最多只能讀 ${context} 個 token` : "，模型讀不完"}。請縮短一點。`,
  error_busy: (seconds) => (seconds ? `伺服器忙線中，${seconds} 秒後再試。` : "伺服器忙線中，請稍後再試。"),
  error_draining: (seconds) => (seconds ? `伺服器正在重新啟動，${seconds} 秒後再試。` : "伺服器正在重新啟動，請稍後再試。"),
  error_not_ready: "模型還沒準備好。",
  error_other: (message) => `伺服器回報：${message}`,
  offline: "伺服器沒有回應，持續重試中…",
  storage_full: "瀏覽器的儲存空間滿了，這段對話沒有存下來。請刪掉一些舊對話，空出位置。",
  storage_none: "這個瀏覽器不讓本頁儲存資料：關閉之後對話就會消失。",
  keys: [
    ["Enter", "傳送"],
    ["Shift Enter", "換行"],
    ["Esc", "停止回答"],
    ["↑", "訊息欄空白時：編輯上一則訊息"],
    ["/", "跳到訊息欄"],
    ["Ctrl Shift O", "開新對話"],
    ["?", "這份清單"],
  ],
};

const TEXTS = { en: EN, "zh-TW": ZH };
const KEY = "nanochat.language";

const stageName = (texts, stage) => texts.stages[stage] ?? stage;

function remembered() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

// Any Chinese is read as ours: there is one Chinese text.
let language = TEXTS[remembered()] ? remembered() : navigator.languages.concat(navigator.language)[0]?.toLowerCase().startsWith("zh") ? "zh-TW" : "en";

/** The text `key` in the page's language; texts with gaps take what fills them. */
export function t(key, ...values) {
  const text = TEXTS[language][key];
  return typeof text === "function" ? text(...values) : text;
}

/** The name of a training stage. */
export const stage = (name) => stageName(TEXTS[language], name);

/** A number as the language writes it. */
export function number(value, digits = 0) {
  return value.toLocaleString(language, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** A time in seconds, in words. */
export function duration(seconds) {
  if (seconds < 90) return t("seconds", Math.max(0, Math.round(seconds)));
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? t("minutes", minutes) : t("hours", Math.floor(minutes / 60), minutes % 60);
}

/** Fill the texts, names and placeholders that the HTML asks for. */
export function translate(root = document) {
  document.documentElement.lang = language === "en" ? "en" : "zh-Hant-TW";
  for (const node of root.querySelectorAll("[data-text]")) {
    const glyph = node.querySelector(":scope > .glyph");
    node.replaceChildren(...(glyph ? [glyph] : []), t(node.dataset.text));
  }
  for (const node of root.querySelectorAll("[data-label]")) {
    node.setAttribute("aria-label", t(node.dataset.label));
    if (node.tagName === "BUTTON") node.title = t(node.dataset.label);
  }
  for (const node of root.querySelectorAll("[data-placeholder]")) node.placeholder = t(node.dataset.placeholder);
}

/** Change to the other language and remember it. */
export function switchLanguage() {
  language = language === "en" ? "zh-TW" : "en";
  try {
    localStorage.setItem(KEY, language);
  } catch {
    // It holds until the page is closed.
  }
}
