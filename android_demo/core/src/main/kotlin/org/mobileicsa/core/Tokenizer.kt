package org.mobileicsa.core

import java.io.ByteArrayOutputStream

/**
 * A byte-level BPE tokenizer read from `tokenizer.json` (GPT-2, SmolLM2, Qwen and their kin).
 *
 * Neither runtime's Android package gives its tokenizer away: ExecuTorch keeps it inside its LLM runner, ONNX Runtime has
 * none. Other kinds of tokenizer are refused, never guessed.
 */
class Tokenizer private constructor(
    private val vocabulary: Map<String, Int>,
    private val ranks: Map<Pair<String, String>, Int>,
    private val special: Map<String, Int>,
    private val splits: List<Regex>,
) {
    private val tokens: Map<Int, String> = vocabulary.entries.associate { (token, id) -> id to token }
    private val names: Map<Int, String> = special.entries.associate { (token, id) -> id to token }
    private val finder: Regex? =
        special.keys.sortedByDescending { it.length }.joinToString("|") { Regex.escape(it) }
            .takeIf { it.isNotEmpty() }?.let(::Regex)

    /** Ids of a text; special tokens written in it become their ids, none is added. */
    fun encode(text: String): IntArray {
        val ids = ArrayList<Int>()
        var at = 0
        finder?.findAll(text)?.forEach {
            plain(text.substring(at, it.range.first), ids)
            ids.add(special.getValue(it.value))
            at = it.range.last + 1
        }
        plain(text.substring(at), ids)
        return ids.toIntArray()
    }

    /** The text of ids, special tokens left out; a cut-off character at an end becomes U+FFFD. */
    fun decode(ids: IntArray): String {
        val bytes = ByteArrayOutputStream()
        for (id in ids) {
            if (id in names) continue
            tokens[id]?.forEach { bytes.write(BYTE_OF[it] ?: throw IllegalArgumentException("token $id is no bytes")) }
        }
        return bytes.toByteArray().decodeToString()
    }

    private fun plain(text: String, ids: MutableList<Int>) {
        var pieces = listOf(text)
        for (split in splits) pieces = pieces.flatMap { isolate(it, split) }
        for (piece in pieces) if (piece.isNotEmpty()) bpe(piece, ids)
    }

    private fun bpe(piece: String, ids: MutableList<Int>) {
        val parts = piece.encodeToByteArray().map { CHAR_OF[it.toInt() and 0xFF].toString() }.toMutableList()
        while (parts.size > 1) {
            var best = -1
            var rank = Int.MAX_VALUE
            for (i in 0 until parts.size - 1) {
                val found = ranks[parts[i] to parts[i + 1]] ?: continue
                if (found < rank) {
                    rank = found
                    best = i
                }
            }
            if (best < 0) break
            parts[best] = parts[best] + parts.removeAt(best + 1)
        }
        parts.mapTo(ids) { vocabulary[it] ?: throw IllegalArgumentException("the vocabulary has no $it") }
    }

    companion object {
        /** GPT-2's pattern, which ByteLevel uses. */
        private val GPT2 = Regex(
            """'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",
        )
        private val DIGIT = Regex("""\p{N}""")

        /** Printable stand-ins for bytes, as GPT-2 chose them. */
        private val CHAR_OF = CharArray(256).also { table ->
            val kept = ('!'..'~') + ('¡'..'¬') + ('®'..'ÿ')
            var next = 256
            for (byte in 0..255) table[byte] = if (byte.toChar() in kept) byte.toChar() else (next++).toChar()
        }
        private val BYTE_OF: Map<Char, Int> = CHAR_OF.withIndex().associate { (byte, char) -> char to byte }

        /** IllegalArgumentException, with the part that is not known, for any other kind of tokenizer. */
        fun from(json: Map<String, Any?>): Tokenizer {
            val model = objectOf(json["model"])
            require((model["type"] ?: "BPE") == "BPE") { "tokenizer: model ${model["type"]} is not known" }
            require(json["normalizer"] == null) { "tokenizer: it has a normalizer" }
            val vocabulary = objectOf(model["vocab"]).mapValues { (it.value as Long).toInt() }
            val ranks = HashMap<Pair<String, String>, Int>()
            (model["merges"] as List<*>).forEachIndexed { index, merge ->
                val (left, right) = if (merge is List<*>) merge.map { it.toString() } else merge.toString().split(' ')
                ranks[left to right] = index
            }
            val added = (json["added_tokens"] as? List<*>).orEmpty().map { objectOf(it) }
            val special = added.associate { it["content"].toString() to (it["id"] as Long).toInt() }
            return Tokenizer(vocabulary, ranks, special, splitsOf(objectOf(json["pre_tokenizer"])))
        }

        private fun splitsOf(rule: Map<String, Any?>): List<Regex> = when (val type = rule["type"]) {
            "Sequence" -> (rule["pretokenizers"] as List<*>).flatMap { splitsOf(objectOf(it)) }
            "Digits" -> {
                require(rule["individual_digits"] == true) { "tokenizer: Digits that stay together" }
                listOf(DIGIT)
            }
            "ByteLevel" -> {
                require(rule["add_prefix_space"] != true) { "tokenizer: ByteLevel with add_prefix_space" }
                if (rule["use_regex"] == false) emptyList() else listOf(GPT2)
            }
            "Split" -> {
                require(rule["behavior"] == "Isolated" && rule["invert"] != true) { "tokenizer: Split ${rule["behavior"]}" }
                val pattern = objectOf(rule["pattern"])
                listOf(pattern["Regex"]?.let { Regex(it.toString()) } ?: Regex(Regex.escape(pattern["String"].toString())))
            }
            else -> throw IllegalArgumentException("tokenizer: pre-tokenizer $type is not known")
        }

        /** Matches and what lies between them, each a piece. */
        private fun isolate(text: String, pattern: Regex): List<String> {
            val pieces = ArrayList<String>()
            var at = 0
            for (match in pattern.findAll(text)) {
                if (match.range.first > at) pieces.add(text.substring(at, match.range.first))
                pieces.add(match.value)
                at = match.range.last + 1
            }
            if (at < text.length) pieces.add(text.substring(at))
            return pieces
        }

        @Suppress("UNCHECKED_CAST")
        private fun objectOf(value: Any?): Map<String, Any?> =
            value as? Map<String, Any?> ?: throw IllegalArgumentException("tokenizer: an object is missing")
    }
}
