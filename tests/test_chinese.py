"""Traditional Chinese as written in Taiwan: terms, script, spacing and punctuation of every text that a reader there sees."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WEB = ROOT / "nanochat" / "chat" / "web"
HAN = r"[\u3400-\u9fff]"

# What is foreign in Taiwan, as a pattern, = what is written there. Lookarounds spare words that merely contain the pattern.
_FOREIGN = r"""
軟件=軟體 硬件=硬體 固件=韌體 組件=元件 插件=外掛 視頻=影片 音頻=音訊 屏幕=螢幕 鼠標=滑鼠 硬盤=硬碟 磁盤=磁碟 芯片=晶片 打印=列印
筆記本電腦=筆電 顯卡=顯示卡 顯存=GPU_記憶體 (?<!以)內存(?![檔放入取在有好])=記憶體 緩存=快取 存儲=儲存 帶寬=頻寬 質量=品質 分辨率=解析度
界面=介面 接口=介面 端口=連接埠 網絡=網路 互聯網=網際網路 服務器=伺服器 服務端=伺服器 客戶端=用戶端 用戶(?!端)=使用者 博客=部落格
鏈接=連結 登錄=登入 賬=帳 訪問=存取 默認=預設 缺省=預設 設置=設定 配置文件=設定檔 文件[夾名]=資料夾、檔名 頭文件=標頭檔 文檔=文件
日誌=記錄檔 信息=資訊、訊息 數據(?!機)=資料 程序=程式 (?<!演)進程=行程 線程=執行緒 運行=執行 加載=載入 (?<!微)調用=呼叫 創建=建立 支持=支援
優化=最佳化 激活=啟用 卸載=解除安裝 兼容=相容 異步=非同步 並行=平行 并=並、併 集群=叢集 分[佈布]式=分散式 遠程=遠端 本地=本機 全局=全域
實時(?!間)=即時 (?<!存)在線=線上 命令行=命令列 源代碼=原始碼 退出碼|結束碼|返回碼=結束代碼 (?<!結束)(?<!錯誤)代碼=程式碼、結束代碼
函數=函式 變量=變數 數組=陣列 字符=字元、字串 字節=位元組 比特(?![別定殊])=位元 循環=迴圈 隊列=佇列 模塊=模組 注釋=註解 調試=除錯
報錯=出現錯誤 崩潰=當掉 宕機|死機=當機 閾值=門檻 矢量=向量 概率=機率 (?<![演計運])算法=演算法 智能=智慧 令牌=權杖 詞表=詞彙表
過擬合=過度擬合 評測=評估 推理=推論 鏡像(?!站)=映像檔 倉庫=儲存庫 掛起=卡住 回車=Enter 粘貼=貼上 搜索=搜尋 刷新=重新整理 圖標=圖示
文本=文字 哈希=雜湊 構建=建置 依賴=相依 拷貝=複製 魯棒=穩健 超時=逾時 內核=核心、kernel 補丁=修補 字段=欄位 [單雙]擊=按一下、按兩下
對話框=對話方塊 菜單=選單 窗口=視窗 導入=匯入 導出=匯出 反饋=回饋 水平=水準 繁中=繁體中文 您=你
"""
FOREIGN = dict(pair.rsplit("=", 1) for pair in _FOREIGN.split())
# What the first edition of these texts said, sentence by sentence after the English -> how it is said here.
TRANSLATED = {
    "占(?![卜星])": "佔",
    "在花掉任何時間之前": "開始前",
    "用 doctor 的方式": "跑一次 doctor 檢查",
    "就給它更多": "就換大一點的設定檔",
    "接著[問抓]": "接續、續傳",
    "答對的說法": "提高答對內容的機率",
    "可以核對的答案": "強化學習：用可驗證的題目",
    "模型是誰，": "模型的身分寫在一個小檔案裡",
    "做小一號": "訓練小一點的模型",
    r"以(代碼 ?)?\d+ ?結束": "結束代碼 N",
    "看守程式": "監看程式",
    "閒置的卡": "不會白白計費",
    "核心因記憶體不足": "記憶體不足，被 Linux kernel 終止",
    "還沒輪到本專案": "在本專案的程式開始執行之前",
    "不在這裡的顯示卡": "別張 GPU",
    "不再是有限的": "NaN 或 Inf",
    "說明要送到哪裡": "指定工具",
    "停了。": "存檔後結束",
}


def pages() -> list[str]:
    """Every page in Traditional Chinese."""
    return sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.zh-TW.md"), *(ROOT / "docs").rglob("*.zh-TW.md")])


def table(name: str) -> str:
    """The Chinese texts of a TOML table, one a line."""

    def texts(value: object) -> list[str]:
        if isinstance(value, dict):
            return [text for part in value.values() for text in texts(part)]
        if isinstance(value, list):
            return [text for part in value for text in texts(part)]
        return [value] if isinstance(value, str) and re.search(HAN, value) else []

    return "\n".join(texts(tomllib.loads((ROOT / name).read_text(encoding="utf-8"))))


def page_strings() -> str:
    """The lines of the chat page's scripts that have Chinese texts; ${...} stands for what is filled in."""
    lines = [line for path in sorted(WEB.rglob("*.js")) for line in path.read_text(encoding="utf-8").splitlines() if re.search(HAN, line)]
    return "\n".join(re.sub(r"\$\{[^{}]*\}", "…", line) for line in lines)


def prose(text: str) -> str:
    """A page without its code blocks, its comments and the targets of its links."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", text, flags=re.S)
    return re.sub(r"\]\([^)]*\)", "]", text)


TABLES = ["nanochat/doctor/troubleshooting.toml", "scripts/reference/glossary.toml", "scripts/reference/zh-TW.toml"]
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in pages()}
TEXTS |= {name: table(name) for name in TABLES} | {"page": page_strings()}


@pytest.mark.parametrize("name", TEXTS)
def test_terms_are_those_of_taiwan(name: str) -> None:
    found = {f"{match[0]} -> {right}" for wrong, right in {**FOREIGN, **TRANSLATED}.items() for match in re.finditer(wrong, TEXTS[name])}
    assert found == set()


@pytest.mark.parametrize("name", TEXTS)
def test_no_simplified_characters(name: str) -> None:
    """Big5 has the characters that Taiwan writes, and none of those that only the simplified script has."""
    characters = set(re.findall(HAN, TEXTS[name]))
    assert {character for character in characters if not character.encode("big5", "ignore")} == set()


@pytest.mark.parametrize("name", pages())
def test_paragraphs_are_not_wrapped(name: str) -> None:
    """Markdown shows a line break within a paragraph as a space, which Chinese does not have between its characters."""
    assert re.findall(r".*[\u3000-\u9fff\uff00-\uffef]\n(?![\n|#>!<\-]|\d+\. |```).+", prose(TEXTS[name])) == []


@pytest.mark.parametrize("name", TEXTS)
def test_spaces_and_punctuation(name: str) -> None:
    """A space between Chinese and a Latin word, number or code; full-width marks after Chinese."""
    text = re.sub(r"\*\*", "", prose(TEXTS[name]))
    close = "[A-Za-z0-9]" if name == "page" else "[A-Za-z0-9`]"  # in the scripts a backtick ends a text
    assert re.findall(rf".{{0,12}}(?:{HAN}{close}|{close}{HAN}).{{0,12}}", text) == []
    assert re.findall(rf".{{0,12}}{HAN}[,;:!?()].{{0,12}}" if name != "page" else rf"{HAN}[,;:!?](?=[^\s\"`)])", text) == []


def both(name: str) -> tuple[str, str]:
    """The English and the Chinese text of a page."""
    return (ROOT / name.replace(".zh-TW", "")).read_text(encoding="utf-8"), TEXTS[name]


def headings(page: str) -> list[int]:
    """The levels of a page's headings, in order."""
    return [len(marks) for marks in re.findall(r"^(#+) ", re.sub(r"```.*?```", "", page, flags=re.S), re.M)]


def code(page: str) -> list[str]:
    """The lines of a page's code blocks, without comments and the texts in JSON, which are in the page's language."""
    lines = "\n".join(re.findall(r"^[ ]*```\w*\n(.*?)```", page, re.S | re.M)).splitlines()
    plain = [re.sub(r"(^|\s+)#.*", "", line).strip() for line in lines]
    return [re.sub(r'": "[^"]*"', '": ""', line) if line.startswith("{") else line for line in plain if line]


def figures(page: str) -> set[str]:
    """The numbers of a page that have several digits; a month is a word in English."""
    return set(re.findall(r"\d[\d,.]*\d", re.sub(r"\d+ 月", "", page)))


@pytest.mark.parametrize("name", pages())
def test_both_languages_say_the_same(name: str) -> None:
    """The same headings, commands and figures, so that a change of one language alone fails here."""
    english, chinese = both(name)
    assert headings(english) == headings(chinese)
    assert code(english) == code(chinese)
    assert figures(english) == figures(chinese)


@pytest.mark.parametrize(("text", "wrong"), [("執行程序", "程序"), ("比特幣", "比特"), ("占 6 GB", "占")])
def test_the_lists_find_and_spare(text: str, wrong: str) -> None:
    patterns = {**FOREIGN, **TRANSLATED}
    assert wrong in {match[0] for pattern in patterns for match in re.finditer(pattern, text)}
    for good in ("數據機", "演算法", "其實時間", "三分鐘內存檔", "比特別", "鏡像站", "用戶端", "結束代碼 75"):
        assert not [pattern for pattern in patterns if re.search(pattern, good)], good
