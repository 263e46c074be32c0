package org.mobileicsa.core

import kotlin.math.exp
import kotlin.random.Random

/** Greedy at [temperature] 0 (ties: lowest index), else a sample. */
fun pick(logits: FloatArray, temperature: Double, random: Random): Int {
    require(logits.isNotEmpty() && logits.all { it.isFinite() }) { "logits are NaN or infinite" }
    var best = 0
    for (i in logits.indices) if (logits[i] > logits[best]) best = i
    if (temperature == 0.0) return best
    val weights = DoubleArray(logits.size) { exp((logits[it] - logits[best]) / temperature) }
    var left = random.nextDouble() * weights.sum()
    for (i in weights.indices) {
        left -= weights[i]
        if (left < 0) return i
    }
    return best
}

/** What a generation took. `decodeTokens` counts the steps behind the first token. */
data class Timing(val promptTokens: Int, val prefillSeconds: Double, val decodeTokens: Int, val decodeSeconds: Double) {
    val prefillTokensPerSecond: Double get() = promptTokens / prefillSeconds
    val decodeTokensPerSecond: Double? get() = if (decodeTokens == 0) null else decodeTokens / decodeSeconds
}

/** Continues [prompt] until an end token, [limit] tokens, a full context, or [onToken] returns false. */
fun generate(
    runner: TokenRunner,
    prompt: IntArray,
    limit: Int,
    endIds: Collection<Int>,
    temperature: Double,
    random: Random = Random.Default,
    nanoTime: () -> Long = System::nanoTime,
    onToken: (Int) -> Boolean,
): Timing {
    val start = nanoTime()
    var logits = runner.prefill(prompt)
    val prefilled = nanoTime()
    var steps = 0
    for (produced in 1..limit) {
        val token = pick(logits, temperature, random)
        if (token in endIds || !onToken(token) || produced == limit || runner.room < 1) break
        logits = runner.decode(token)
        steps++
    }
    return Timing(prompt.size, (prefilled - start) / 1e9, steps, (nanoTime() - prefilled) / 1e9)
}
