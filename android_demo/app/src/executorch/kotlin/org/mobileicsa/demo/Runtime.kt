package org.mobileicsa.demo

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.LongBuffer
import org.mobileicsa.core.Choices
import org.mobileicsa.core.ModelFacts
import org.mobileicsa.core.Output
import org.mobileicsa.core.Session
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

/** This flavour's runtime: ExecuTorch. The one file that an API change of it touches. */
object Runtime {
    fun open(folder: File, facts: ModelFacts, threads: Int, choices: Choices): Session =
        ExecutorchSession(folder, facts, threads, choices)
}

private class ExecutorchSession(folder: File, facts: ModelFacts, threads: Int, choices: Choices) : Session {
    override val runtime = "executorch-android ${BuildVersions.EXECUTORCH}"
    private val module: Module
    private val stored: Map<String, String>
    private val shape = longArrayOf(1, facts.kvHeads.toLong(), facts.context.toLong(), facts.headDim.toLong())
    private val real = facts.cacheBytesPerValue == 4
    private var wrapped: List<ByteBuffer> = emptyList()
    private var cacheValues: List<EValue> = emptyList()

    init {
        require(choices == Choices()) { "this model has no adapters and no early exits" }
        val path = File(folder, facts.methods.getValue("decode")).path
        module = Module.load(path, Module.LOAD_MODE_MMAP, threads)
        // A runner of ExecuTorch's own takes `decode` for its method: ours have other names, but in the first files.
        val present = module.getMethods().toSet()
        stored = facts.methods.keys.associateWith { if ("${it}_rows" in present) "${it}_rows" else it }
        for (method in stored.values) module.loadMethod(method)
    }

    override fun run(method: String, tokens: LongArray, position: Long, cache: List<ByteBuffer>): Output {
        if (wrapped !== cache) {
            // The tensors share the buffers' memory: rows written between calls are seen.
            cacheValues = cache.map { EValue.from(tensor(it)) }
            wrapped = cache
        }
        val inputs = listOf(
            EValue.from(Tensor.fromBlob(direct(tokens), longArrayOf(1, tokens.size.toLong()))),
            EValue.from(Tensor.fromBlob(direct(longArrayOf(position)), longArrayOf(1))),
        ) + cacheValues
        val outputs = module.execute(stored.getValue(method), *inputs.toTypedArray())
        val logits = outputs[0].toTensor().dataAsFloatArray
        return Output(logits, outputs.drop(1).map { bytes(it.toTensor()) })
    }

    private fun tensor(buffer: ByteBuffer): Tensor {
        val whole = buffer.duplicate().order(ByteOrder.nativeOrder())
        whole.clear()
        return if (real) Tensor.fromBlob(whole.asFloatBuffer(), shape) else Tensor.fromBlob(whole, shape)
    }

    private fun bytes(tensor: Tensor): ByteBuffer {
        if (!real) return ByteBuffer.wrap(tensor.dataAsByteArray)
        val values = tensor.dataAsFloatArray
        val buffer = ByteBuffer.allocate(values.size * 4).order(ByteOrder.nativeOrder())
        buffer.asFloatBuffer().put(values)
        return buffer
    }

    override fun close() = module.destroy()
}

private fun direct(values: LongArray): LongBuffer {
    val buffer = Tensor.allocateLongBuffer(values.size)
    buffer.put(values)
    buffer.rewind()
    return buffer
}
