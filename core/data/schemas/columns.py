"""The names that columns go by, in several languages, and the parts they play."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_NAMES = {
    "conversation": """messages conversations conversation dialogue dialog dialogues chat turns
        chat_history conversation_history message_list formatted_chat 对话 消息 對話 訊息 会话 会話 対話
        メッセージ 대화 메시지 gespräch unterhaltung nachrichten dialoge conversación conversaciones
        mensajes diálogo диалог сообщения беседа разговор conversa conversas mensagens conversazione
        conversazioni messaggi dialogo""",
    "question": """instruction instructions prompt prompts question questions query problem user human
        user_message user_input user_prompt user_query user_question human_message question_text
        question_stem question_body problem_statement request ask goal inputs input input_text
        source_text q message_1 ctx 指令 指示 问题 問題 提问 提問 问 輸入 输入 用户 用戶 用户输入 提示词
        提示 質問 入力 ユーザー プロンプト 問い 질문 지시 지시문 명령 프롬프트 입력 사용자 물음
        anweisung frage anfrage aufgabe eingabe nutzer benutzer aufforderung instrucción instrucciones
        pregunta consulta entrada usuario инструкция вопрос запрос задание ввод пользователь промпт consigne
        requête entrée utilisateur instrução pergunta usuário istruzione istruzioni domanda richiesta
        utente""",
    "answer": """output outputs response responses completion completions solution answer answers
        assistant reply generation generated_text gpt bot chatbot ai model_response gpt_response
        assistant_message assistant_response bot_response model_output ai_response answer_text
        correct_answer final_answer best_answer output_text target_text expected_output expected_answer
        ground_truth gold_answer a message_2 回答 答案 答复 答覆 回复 回覆 输出 輸出 响应 助手 解答
        输出结果 答 答え 出力 応答 返答 返信 アシスタント 답변 응답 출력 대답 정답 해답 어시스턴트
        antwort antworten ausgabe lösung respuesta respuestas salida solución ответ ответы вывод
        ассистент réponse réponses sortie resposta respostas saída solução risposta risposte uscita""",
    "system": """system system_prompt system_message system_instruction system_text sys sys_prompt
        developer 系统 系統 系统提示 系统提示词 系統提示 系统消息 システム システムプロンプト 시스템
        시스템_프롬프트 시스템프롬프트 systemprompt systemnachricht sistema prompt_del_sistema
        mensaje_del_sistema система системный_промпт системное_сообщение système prompt_système
        prompt_do_sistema prompt_di_sistema""",
    "context": """context contexts passage background article document paragraph knowledge reference
        story support evidence premise_text 上下文 背景 文章 材料 语境 語境 资料 文脈 コンテキスト
        背景情報 記事 문맥 맥락 지문 배경 kontext hintergrund artikel dokument contexto pasaje artículo
        documento контекст отрывок статья документ contexte passage_texte contesto articolo""",
    "input": "input inputs 输入 輸入 入力 입력 eingabe entrada ввод entrée",
    "history": """history 历史 歷史 历史对话 履歴 会話履歴 이력 기록 verlauf historial история historique
        histórico""",
    "document": """document article text content body passage dialogue dialog conversation transcript
        report source""",
    "summary": """summary highlights tldr tl_dr abstract headline 摘要 总结 總結 要約 요약
        zusammenfassung resumen резюме сводка краткое_содержание résumé resumo riassunto sommario""",
    "text": """text sentence review tweet comment utterance post content body message description
        document article headline title premise question1 sentence1 文本 内容 內容 句子 评论 評論 正文
        テキスト 文 本文 レビュー 文章 텍스트 문장 내용 리뷰 댓글 본문 satz inhalt kommentar
        bewertungstext texto frase oración reseña текст предложение отзыв комментарий texte phrase avis
        testo recensione""",
    "second_text": "hypothesis sentence2 question2 text2 text_b second_sentence",
    "label_name": """label_text label_name label_str label_names class_name category_name intent_name
        sentiment_text emotion_name""",
    "label": """label labels class category sentiment intent emotion topic target classification
        polarity rating stars gold_label is_spam spam 标签 標籤 类别 類別 分类 分類 情感 意图 ラベル
        カテゴリ カテゴリー クラス 感情 라벨 레이블 분류 카테고리 감정 감성 kategorie klasse etikett
        stimmung etiqueta categoría clase sentimiento метка класс категория тональность étiquette
        catégorie classe rótulo categoria sentimento etichetta""",
    "chosen": """chosen chosen_response response_chosen answer_chosen chosen_answer preferred
        preferred_output preferred_response preferred_completion accepted better better_response winner
        response_win response_j good_response good_answer""",
    "rejected": """rejected rejected_response response_rejected answer_rejected rejected_answer
        dispreferred dispreferred_output non_preferred non_preferred_output non_preferred_response
        rejected_completion unpreferred worse worse_response loser response_lose response_k bad_response
        bad_answer""",
    "rated": "label kto_tag kto_label is_good is_desirable desirable good is_preferred",
    "choices": """choices options endings answer_choices candidates candidate_answers mc_choices 选项
        選項 選択肢 선택지 보기 optionen antwortmöglichkeiten opciones варианты варианты_ответа choix
        opções alternativas opzioni""",
    "choice": """answer_key answer_idx answer_index answer_letter correct_option correct_choice
        correct_idx correct_index correct cop gold gold_index label solution answer target
        correct_answer answers 答案 正确答案 正確答案 正解 정답 lösung richtige_antwort respuesta
        respuesta_correcta правильный_ответ réponse resposta risposta""",
    "reasoning": """reasoning reasoning_content thinking thought thoughts think cot chain_of_thought
        complex_cot 思考 思考过程 推理 推論 思维链 추론 размышления рассуждение""",
    "tools": "tools functions available_tools tool_list function_definitions",
    "media": "image images video videos audio audios picture pictures image_path",
    "translation": "translation translations",
    "segments": "segments",
    "tokens": "input_ids token_ids",
    "unlike_text": """id ids idx index uuid guid uid key hash md5 sha url link path file filename
        file_name source src dataset split date time timestamp created created_at updated_at author
        user_id user_name username name lang language locale license score scores votes upvotes likes
        rating model model_name token_count tokens num_tokens length word_count meta metadata version
        level difficulty subject domain category topic tag tags type row_id question_id prompt_id qid
        doc_id conversation_id session_id""",
}
"""Names by part, the likeliest first; a name may stand for several parts."""

PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("instruction", "answer"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "answer"),
    ("query", "response"),
    ("problem", "solution"),
    ("inputs", "targets"),
    ("source", "target"),
    ("question", "answers"),
)
"""Names that belong together, where a table has several that might be the question or the answer."""

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z][a-z])")
_SEPARATORS = re.compile(r"[\s\-./:]+|_{2,}")


@lru_cache(maxsize=8192)
def normal(name: str) -> str:
    """A column name in the form it is compared in: `System-Prompt`, `systemPrompt` -> `system_prompt`.

    Accents are left out, as many files do, and full-width letters become plain ones.
    """
    text = _CAMEL.sub("_", name.strip().strip("\ufeff\"'"))
    if not text.isascii():
        letters = unicodedata.normalize("NFKD", text)
        text = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return _SEPARATORS.sub("_", text.casefold()).strip("_?")


ALIASES = {part: tuple(dict.fromkeys(map(normal, names.split()))) for part, names in _NAMES.items()}
"""Names by part as `normal` writes them."""

_TELLING = ("conversation", "question", "answer", "system", "context", "history", "summary", "text", "label")

KNOWN = frozenset(
    name
    for part in (*_TELLING, "chosen", "rejected", "choices", "tools")
    for spelling in _NAMES[part].split()
    for name in (spelling, normal(spelling), spelling.replace("_", " "))
)
"""Every column name that means something here, in lower case, as files write them."""

INSTRUCTIONS = frozenset(
    map(
        normal,
        [
            "instruction",
            "instructions",
            "指令",
            "指示",
            "지시",
            "지시문",
            "anweisung",
            "instrucción",
            "инструкция",
            "instrução",
            "istruzione",
        ],
    )
)
"""Names of a question that speak of Alpaca's form."""

PROMPTS = frozenset(map(normal, ["prompt", "prompts", "提示词", "提示", "プロンプト", "프롬프트", "промпт"]))
"""Names of a question that speak of the form of prompt and completion."""
