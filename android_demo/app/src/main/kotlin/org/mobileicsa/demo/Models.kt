package org.mobileicsa.demo

import android.os.SystemClock
import java.io.File
import org.mobileicsa.core.Choices
import org.mobileicsa.core.Json
import org.mobileicsa.core.Machine
import org.mobileicsa.core.ModelFacts
import org.mobileicsa.core.Session
import org.mobileicsa.core.Tokenizer
import org.mobileicsa.core.peakRssBytes

/** A model's folder on the phone, as `mobileicsa bench --device adb --keep` leaves it. */
class Model(private val folder: File) {
    val facts: ModelFacts = ModelFacts.read(File(folder, ModelFacts.FILE))

    val prefixRows: ByteArray? get() = facts.prefixFile?.let { File(folder, it).readBytes() }

    fun open(threads: Int, choices: Choices = Choices()): Session = Runtime.open(folder, facts, threads, choices)

    fun tokenizer(): Tokenizer {
        val name = facts.tokenizer ?: throw IllegalArgumentException("${facts.name} was pushed without a tokenizer")
        return Tokenizer.from(Json.parseObject(File(folder, name).readText()))
    }

    override fun toString(): String = facts.name

    companion object {
        private val PUSHED = File("/data/local/tmp/mobileicsa")

        /** Models for this flavour, those that cannot be read left out. */
        fun pushed(): List<Model> = PUSHED.listFiles().orEmpty().sortedBy { it.name }.mapNotNull { folder ->
            runCatching { Model(folder) }.getOrNull()?.takeIf { it.fits() }
        }
    }

    private fun fits(): Boolean = facts.methods.values.all { File(folder, it).canRead() } &&
        facts.methods.values.all { it.endsWith(".pte") == (Flavour.IS_EXECUTORCH) }
}

/** This process, for the benchmark. */
fun machine(): Machine = Machine(
    bootNanos = SystemClock::elapsedRealtimeNanos,
    rssBytes = { peakRssBytes(File("/proc/self/status").readText()) },
    sleep = Thread::sleep,
)
