"""The names that the speakers of a conversation go by."""

from __future__ import annotations

from ollama_tune.core.data.schemas.columns import normal

_NAMES = {
    "system": """system developer sys system_prompt context_prompt 系统 系統 システム 시스템 sistema
        система système systeme""",
    "user": """user human prompter customer client question instruction prompt input query usr
        user_message 用户 用戶 人类 人類 使用者 问 客户 ユーザー ユーザ 人間 質問者 사용자 유저 인간
        nutzer benutzer kunde mensch usuario humano cliente пользователь человек клиент utilisateur
        humain usuário utente umano""",
    "assistant": """assistant gpt chatgpt gpt4 gpt_4 gpt3 gpt_3.5 bing bard claude gemini llama bot
        chatbot model ai agent answer response output completion reply llm assistant_message
        ai_assistant 助手 机器人 機器人 助理 模型 智能助手 客服 答 アシスタント 回答者 ボット 어시스턴트
        도우미 챗봇 상담원 assistent asistente ayudante ассистент помощник бот модель assistant_ia
        assistente aiutante""",
    "tool": """tool function observation ipython tool_response tool_result tool_output function_response
        function_result function_output environment 工具 ツール 도구 werkzeug herramienta инструмент
        outil ferramenta strumento""",
    "call": "function_call tool_call tool_calls function_calls",
}

ROLES = {normal(name): role for role, names in _NAMES.items() for name in names.split()}
"""A role of ours by the name files give it; `call` is an answer that is nothing but the call of a tool."""


def role_of(name: object) -> str | None:
    """The role that a name stands for; None for one that is not known."""
    return ROLES.get(normal(name)) if isinstance(name, str) else None
