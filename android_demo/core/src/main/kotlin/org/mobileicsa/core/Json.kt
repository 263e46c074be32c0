package org.mobileicsa.core

/** JSON to and from plain values: Map, List, String, Long, Double, Boolean, null. */
object Json {
    private const val MAX_DEPTH = 64

    fun parse(text: String): Any? = Reader(text).whole()

    @Suppress("UNCHECKED_CAST")
    fun parseObject(text: String): Map<String, Any?> =
        parse(text) as? Map<String, Any?> ?: throw IllegalArgumentException("JSON: an object was expected")

    fun write(value: Any?): String = StringBuilder().also { write(value, it) }.toString()

    private fun write(value: Any?, out: StringBuilder) {
        when (value) {
            null, is Boolean, is Int, is Long -> out.append(value)
            is Number -> {
                val number = value.toDouble()
                require(number.isFinite()) { "JSON has no $number" }
                out.append(number)
            }
            is Map<*, *> -> {
                out.append('{')
                value.entries.forEachIndexed { index, (key, item) ->
                    if (index > 0) out.append(',')
                    quote(key.toString(), out)
                    out.append(':')
                    write(item, out)
                }
                out.append('}')
            }
            is Iterable<*> -> {
                out.append('[')
                value.forEachIndexed { index, item ->
                    if (index > 0) out.append(',')
                    write(item, out)
                }
                out.append(']')
            }
            else -> quote(value.toString(), out)
        }
    }

    private fun quote(text: String, out: StringBuilder) {
        out.append('"')
        for (c in text) {
            when {
                c == '"' || c == '\\' -> out.append('\\').append(c)
                c < ' ' -> out.append("\\u%04x".format(c.code))
                else -> out.append(c)
            }
        }
        out.append('"')
    }

    private class Reader(private val text: String) {
        private var at = 0

        fun whole(): Any? {
            val value = value(0)
            if (peek() != null) fail("something behind the end")
            return value
        }

        private fun value(depth: Int): Any? {
            if (depth > MAX_DEPTH) fail("nested too deeply")
            return when (val c = peek()) {
                '{' -> members(depth)
                '[' -> items(depth)
                '"' -> string()
                't' -> word("true", true)
                'f' -> word("false", false)
                'n' -> word("null", null)
                else -> if (c == '-' || c in '0'..'9') number() else fail("a value was expected")
            }
        }

        private fun members(depth: Int): Map<String, Any?> {
            val found = LinkedHashMap<String, Any?>()
            take('{')
            if (peek() != '}') {
                do {
                    peek()
                    val key = string()
                    take(':')
                    found[key] = value(depth + 1)
                } while (more())
            }
            take('}')
            return found
        }

        private fun items(depth: Int): List<Any?> {
            val found = ArrayList<Any?>()
            take('[')
            if (peek() != ']') {
                do found.add(value(depth + 1)) while (more())
            }
            take(']')
            return found
        }

        private fun more(): Boolean = (peek() == ',').also { if (it) at++ }

        private fun string(): String {
            if (text.getOrNull(at) != '"') fail("a string was expected")
            val out = StringBuilder()
            at++
            while (true) {
                val c = text.getOrNull(at++) ?: fail("a string without end")
                when (c) {
                    '"' -> return out.toString()
                    '\\' -> out.append(escaped())
                    else -> out.append(c)
                }
            }
        }

        private fun escaped(): Char = when (val c = text.getOrNull(at++)) {
            'n' -> '\n'
            't' -> '\t'
            'r' -> '\r'
            'b' -> '\b'
            'f' -> '\u000c'
            'u' -> text.substring(at, minOf(at + 4, text.length)).toIntOrNull(16)?.toChar()?.also { at += 4 }
                ?: fail("a wrong escape")
            '"', '\\', '/' -> c
            else -> fail("a wrong escape")
        }

        private fun number(): Number {
            val start = at
            while (text.getOrNull(at) in NUMBER) at++
            val literal = text.substring(start, at)
            return literal.toLongOrNull() ?: literal.toDoubleOrNull() ?: fail("a wrong number")
        }

        private fun <T> word(word: String, value: T): T {
            if (!text.startsWith(word, at)) fail("$word was expected")
            at += word.length
            return value
        }

        private fun take(c: Char) {
            if (peek() != c) fail("'$c' was expected")
            at++
        }

        private fun peek(): Char? {
            while (text.getOrNull(at) in BLANKS) at++
            return text.getOrNull(at)
        }

        private fun fail(what: String): Nothing = throw IllegalArgumentException("JSON: $what at character $at")
    }

    private val BLANKS = setOf<Char?>(' ', '\n', '\r', '\t')
    private val NUMBER: Set<Char?> = "+-.eE0123456789".toSet()
}
