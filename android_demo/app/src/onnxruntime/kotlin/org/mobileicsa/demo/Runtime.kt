package org.mobileicsa.demo

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.LongBuffer
import org.mobileicsa.core.Choices
import org.mobileicsa.core.ModelFacts
import org.mobileicsa.core.Output
import org.mobileicsa.core.Session

/** This flavour's runtime: ONNX Runtime on the CPU. The one file that an API change of it touches. */
object Runtime {
    fun open(folder: File, facts: ModelFacts, threads: Int, choices: Choices): Session =
        OnnxruntimeSession(folder, facts, threads, choices)
}

private class OnnxruntimeSession(folder: File, facts: ModelFacts, threads: Int, choices: Choices) : Session {
    override val runtime = "onnxruntime-android ${BuildVersions.ONNXRUNTIME}"
    private val environment = OrtEnvironment.getEnvironment()
    private val names = facts.inputs
    private val sessions: Map<String, OrtSession>
    private val shape = longArrayOf(1, facts.kvHeads.toLong(), facts.context.toLong(), facts.headDim.toLong())
    private val real = facts.cacheBytesPerValue == 4
    private var wrapped: List<ByteBuffer> = emptyList()
    private var cacheTensors: List<OnnxTensor> = emptyList()

    init {
        require(choices == Choices()) { "this model has no adapters and no early exits" }
        sessions = facts.methods.mapValues { (_, file) ->
            OrtSession.SessionOptions().use { options ->
                if (threads > 0) options.setIntraOpNumThreads(threads)
                options.setOptimizationLevel(OrtSession.SessionOptions.OptLevel.ALL_OPT)
                // Our activations are signed: integer kernels for signed inputs too.
                options.addConfigEntry("session.qdqisint8allowed", "1")
                environment.createSession(File(folder, file).path, options)
            }
        }
    }

    override fun run(method: String, tokens: LongArray, position: Long, cache: List<ByteBuffer>): Output {
        if (wrapped !== cache) {
            cacheTensors.forEach { it.close() }
            // The tensors share the buffers' memory: rows written between calls are seen.
            cacheTensors = cache.map(::tensor)
            wrapped = cache
        }
        val ids = OnnxTensor.createTensor(environment, LongBuffer.wrap(tokens), longArrayOf(1, tokens.size.toLong()))
        val place = OnnxTensor.createTensor(environment, LongBuffer.wrap(longArrayOf(position)), longArrayOf(1))
        return ids.use {
            place.use {
                val inputs = names.zip(listOf(ids, place) + cacheTensors).toMap()
                sessions.getValue(method).run(inputs).use { result ->
                    val found = (0 until result.size()).map { result.get(it) as OnnxTensor }
                    val logits = found[0].floatBuffer
                    Output(
                        FloatArray(logits.remaining()).also(logits::get),
                        found.drop(1).map { it.byteBuffer.order(ByteOrder.nativeOrder()) },
                    )
                }
            }
        }
    }

    private fun tensor(buffer: ByteBuffer): OnnxTensor {
        val whole = buffer.duplicate().order(ByteOrder.nativeOrder())
        whole.clear()
        return if (real) {
            OnnxTensor.createTensor(environment, whole.asFloatBuffer(), shape)
        } else {
            OnnxTensor.createTensor(environment, whole, shape, OnnxJavaType.INT8)
        }
    }

    override fun close() {
        cacheTensors.forEach { it.close() }
        sessions.values.forEach { it.close() }
    }
}
