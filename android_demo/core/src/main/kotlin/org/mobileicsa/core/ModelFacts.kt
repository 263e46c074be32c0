package org.mobileicsa.core

import java.io.File

/** What `model.json` says of a model's folder; `mobileicsa bench --device adb` writes it. */
data class ModelFacts(
    val name: String,
    val methods: Map<String, String>,
    val inputs: List<String>,
    val context: Int,
    val prefillChunk: Int,
    val vocabSize: Int,
    val layers: Int,
    val kvHeads: Int,
    val headDim: Int,
    val cacheBytesPerValue: Int,
    val prefixLength: Int,
    val prefixFile: String?,
    val bosId: Int?,
    val eosIds: List<Int>,
    val tokenizer: String?,
    /** Names of adapters and the default threshold of early exits, for models that have them. */
    val adapters: List<String>,
    val exitThreshold: Double?,
) {
    companion object {
        const val FORMAT = 1L
        const val FILE = "model.json"

        fun read(file: File): ModelFacts = from(Json.parseObject(file.readText()))

        /** IllegalArgumentException where a field is missing or of another kind. */
        fun from(json: Map<String, Any?>): ModelFacts {
            val format = json["format"]
            require(format == FORMAT) { "model.json has format $format, this app reads $FORMAT" }
            return ModelFacts(
                name = json.text("name"),
                methods = json.child("methods").mapValues { it.value.toString() },
                inputs = json.list("inputs").map { it.toString() },
                context = json.int("context"),
                prefillChunk = json.int("prefill_chunk"),
                vocabSize = json.int("vocab_size"),
                layers = json.int("layers"),
                kvHeads = json.int("kv_heads"),
                headDim = json.int("head_dim"),
                cacheBytesPerValue = when (val type = json.text("cache_dtype")) {
                    "int8" -> 1
                    "float32" -> 4
                    else -> throw IllegalArgumentException("cache_dtype $type is unknown")
                },
                prefixLength = json.int("prefix_length"),
                prefixFile = json["prefix_file"] as? String,
                bosId = (json["bos_id"] as? Long)?.toInt(),
                eosIds = json.list("eos_ids").map { (it as Long).toInt() },
                tokenizer = json["tokenizer"] as? String,
                adapters = (json["adapters"] as? List<*>).orEmpty().map { it.toString() },
                exitThreshold = (json["exit_threshold"] as? Number)?.toDouble(),
            )
        }
    }
}

private fun Map<String, Any?>.text(key: String): String =
    this[key] as? String ?: throw IllegalArgumentException("model.json: $key is missing")

private fun Map<String, Any?>.int(key: String): Int =
    (this[key] as? Long)?.toInt() ?: throw IllegalArgumentException("model.json: $key is missing")

private fun Map<String, Any?>.list(key: String): List<*> =
    this[key] as? List<*> ?: throw IllegalArgumentException("model.json: $key is missing")

@Suppress("UNCHECKED_CAST")
private fun Map<String, Any?>.child(key: String): Map<String, Any?> =
    this[key] as? Map<String, Any?> ?: throw IllegalArgumentException("model.json: $key is missing")
